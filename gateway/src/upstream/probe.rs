//! Active health checks: asks an endpoint, at intervals, whether it is well.
//!
//! A task for each endpoint and check, on the control thread: nothing of it is on a request's path, and
//! nothing of it is a worker's. It speaks just enough HTTP to read a status.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::Endpoint;
use super::dice::Dice;
use super::pool::lacks_descriptors;
use crate::config::HealthCheck;

/// Of the interval, added by chance, so that checks of many endpoints do not come in step.
const JITTER: f64 = 0.1;
const STATUS_LINE_BYTES: usize = 4096;

/// Results in a row, and what they have made of the endpoint.
#[derive(Debug, PartialEq)]
pub struct Verdicts {
    well: bool,
    /// In a row against what holds.
    against: u32,
}

impl Verdicts {
    /// An endpoint is taken for well until it is found otherwise.
    pub fn new() -> Self {
        Self { well: true, against: 0 }
    }

    /// Takes a result; returns what holds from now on, if that is something else.
    pub fn take(&mut self, well: bool, check: &HealthCheck) -> Option<bool> {
        if well == self.well {
            self.against = 0;
            return None;
        }
        self.against += 1;
        let enough = if well { check.successes } else { check.failures };
        if self.against < enough {
            return None;
        }
        *self = Self { well, against: 0 };
        Some(well)
    }
}

impl Default for Verdicts {
    fn default() -> Self {
        Self::new()
    }
}

/// Checks `endpoint` until the task is aborted.
pub async fn follow(endpoint: Arc<Endpoint>, check: HealthCheck) {
    let mut verdicts = Verdicts::new();
    loop {
        // One that is drained may be away for a good reason: what it was before counts on.
        if !endpoint.health.word().is_drained()
            && let Some(result) = ask(&endpoint, &check).await
            && !endpoint.health.word().is_drained()
        {
            take(result, &mut verdicts, &endpoint, &check);
        }
        let chance = Dice::default().fraction();
        tokio::time::sleep(check.interval.mul_f64(1.0 + JITTER * chance)).await;
    }
}

fn take(result: Result<(), String>, verdicts: &mut Verdicts, endpoint: &Endpoint, check: &HealthCheck) {
    if let Err(why) = &result {
        endpoint.health.count_failed_check();
        tracing::debug!(upstream = endpoint.name, path = check.path, why, "health check failed");
    }
    let why = result.as_ref().err().map(String::as_str).unwrap_or_default();
    if let Some(well) = verdicts.take(result.is_ok(), check) {
        endpoint.health.checked(check, well, Instant::now());
        match well {
            true => tracing::info!(upstream = endpoint.name, path = check.path, "healthy"),
            false => tracing::warn!(upstream = endpoint.name, path = check.path, why, "unhealthy"),
        }
    }
}

/// Whether the endpoint answers as `check` wants it; if not, why. `None`: the gateway has no descriptor to ask with.
async fn ask(endpoint: &Endpoint, check: &HealthCheck) -> Option<Result<(), String>> {
    let status = match tokio::time::timeout(check.timeout, status(endpoint, check)).await {
        Ok(Ok(status)) => status,
        Ok(Err(error)) if lacks_descriptors(&error) => return None,
        Ok(Err(error)) => return Some(Err(error.to_string())),
        Err(_) => return Some(Err("no answer in time".to_owned())),
    };
    let expected = match &check.statuses {
        Some(statuses) => statuses.contains(&status),
        None => status < 500,
    };
    Some(if expected { Ok(()) } else { Err(format!("status {status}")) })
}

async fn status(endpoint: &Endpoint, check: &HealthCheck) -> io::Result<u16> {
    let mut socket = TcpStream::connect(&endpoint.addresses[..]).await?;
    let authority = endpoint.authority.to_str().unwrap_or_default();
    let request = format!(
        "GET {} HTTP/1.1\r\nhost: {authority}\r\nuser-agent: gateway health check\r\nconnection: close\r\n\r\n",
        check.path
    );
    socket.write_all(request.as_bytes()).await?;
    let mut read = Vec::new();
    loop {
        if socket.read_buf(&mut read).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut fields = [httparse::EMPTY_HEADER; 256];
        let mut response = httparse::Response::new(&mut fields);
        response
            .parse(&read)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))?;
        if let Some(status) = response.code {
            return Ok(status);
        }
        if read.len() > STATUS_LINE_BYTES {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "its status line is too long"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_in_a_row_change_what_holds() {
        let check = HealthCheck::default();
        let mut verdicts = Verdicts::new();
        let results = "--+--- ++ -+--+ ---".chars().filter(|c| *c != ' ');
        let changes: Vec<_> = results.map(|c| verdicts.take(c == '+', &check)).collect();
        let mut want = [None; 16];
        for (at, well) in [(5, false), (7, true), (15, false)] {
            want[at] = Some(well);
        }
        assert_eq!(changes, want);
    }
}
