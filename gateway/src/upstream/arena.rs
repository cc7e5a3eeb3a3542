//! Where a worker's upstream connections read into: one block, given away as it fills; and what their
//! heads are read with: maps for fields, used again, and the names that have come before.
//!
//! A small answer takes its few hundred bytes of the block and no allocation; a large one takes the
//! block whole, and the next read finds it free again once its bytes have gone out. A connection
//! that waits holds nothing of it.

use std::cell::RefCell;
use std::future::Future;
use std::io;
use std::pin::pin;
use std::task::{Context, Poll, ready};

use bytes::{BufMut as _, Bytes, BytesMut};
use http::header::InvalidHeaderName;
use http::{HeaderMap, HeaderName};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

pub const BLOCK_BYTES: usize = 256 * 1024;
/// Where less is left, a new block is begun: large bodies come in few reads.
const LEAST_READ_BYTES: usize = 64 * 1024;

/// Maps kept for later, and the most fields of one that is kept.
const SPARE_MAPS: usize = 64;
const SPARE_FIELDS: usize = 64;

#[derive(Default)]
pub struct Arena {
    block: RefCell<BytesMut>,
    spare: RefCell<Vec<HeaderMap>>,
    names: RefCell<Names>,
}

/// Names as they are written, each in the one place that its ends give it. Clients and upstreams use the same few
/// names, and finding out what one stands for costs several times what comparing it does.
struct Names(Box<[Option<Known>]>);

struct Known {
    written: [u8; Names::LONGEST],
    length: usize,
    name: HeaderName,
}

impl Arena {
    /// One read of up to `most` bytes from `socket`; empty: the end of its input.
    pub fn poll_read(
        &self,
        socket: &mut TcpStream,
        most: usize,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<Bytes>> {
        let mut block = self.block.borrow_mut();
        // The same memory again, still in the processor's caches, unless somebody holds a part of it.
        if !block.try_reclaim(BLOCK_BYTES) && block.capacity() < LEAST_READ_BYTES {
            block.reserve(BLOCK_BYTES);
        }
        ready!(pin!(socket.read_buf(&mut (&mut *block).limit(most))).poll(cx))?;
        Poll::Ready(Ok(block.split().freeze()))
    }

    /// An empty map with room for `fields`; one that served before, if there is one.
    pub fn map(&self, fields: usize) -> HeaderMap {
        let mut map = self.spare.borrow_mut().pop().unwrap_or_default();
        map.reserve(fields);
        map
    }

    /// The name that is written so.
    pub fn name(&self, written: &[u8]) -> Result<HeaderName, InvalidHeaderName> {
        self.names.borrow_mut().find(written)
    }

    /// Takes a map that is not needed any more.
    pub fn recycle(&self, mut map: HeaderMap) {
        let mut spare = self.spare.borrow_mut();
        if spare.len() < SPARE_MAPS && (1..=SPARE_FIELDS).contains(&map.capacity()) {
            map.clear();
            spare.push(map);
        }
    }
}

impl Names {
    /// Many for the few, so that hardly two of them want the same one.
    const PLACES: usize = 512;
    /// Longer ones are not kept.
    const LONGEST: usize = 32;

    fn find(&mut self, written: &[u8]) -> Result<HeaderName, InvalidHeaderName> {
        let (length, place) = (written.len(), Self::place(written));
        if let Some(known) = &self.0[place]
            && known.written[..known.length] == *written
        {
            return Ok(known.name.clone());
        }
        let name = HeaderName::from_bytes(written)?;
        if length <= Self::LONGEST {
            let mut kept = [0; Self::LONGEST];
            kept[..length].copy_from_slice(written);
            self.0[place] = Some(Known { written: kept, length, name: name.clone() });
        }
        Ok(name)
    }

    /// By the first four letters and the last four, spread by a multiplier of MurmurHash3's.
    fn place(written: &[u8]) -> usize {
        const SPREAD: u64 = 0xff51_afd7_ed55_8ccd;
        let ends = match (written.first_chunk(), written.last_chunk()) {
            (Some(first), Some(last)) => {
                u64::from(u32::from_le_bytes(*first)) << 32 | u64::from(u32::from_le_bytes(*last))
            }
            _ => written.iter().fold(0, |ends, byte| ends << 8 | u64::from(*byte)),
        };
        (ends.wrapping_mul(SPREAD) >> (u64::BITS - Self::PLACES.ilog2())) as usize
    }
}

impl Default for Names {
    fn default() -> Self {
        Self((0..Self::PLACES).map(|_| None).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_names_of_a_browser_and_of_its_answers_have_places_of_their_own() {
        let names = "Host Connection Cache-Control sec-ch-ua sec-ch-ua-mobile sec-ch-ua-platform Cookie Referer \
            Upgrade-Insecure-Requests User-Agent Accept Accept-Encoding Accept-Language Sec-Fetch-Site Sec-Fetch-Mode \
            Sec-Fetch-User Sec-Fetch-Dest Content-Type Content-Length Date Server ETag Last-Modified Vary";
        let names: Vec<&str> = names.split_whitespace().collect();
        let mut places: Vec<usize> = names.iter().map(|name| Names::place(name.as_bytes())).collect();
        places.sort_unstable();
        places.dedup();
        assert_eq!(places.len(), names.len());
    }

    #[test]
    fn a_name_is_what_it_would_be_without_those_before_it() {
        let arena = Arena::default();
        let long = "x-".repeat(40);
        // The same ends and length as another, other cases of it, too long, no names at all.
        let all = ["Server", "server", "SERVER", "Sliver", "X-Abc", "X-Bbc", "x-abc", &long, "", "a b", "Ö"];
        for written in all.iter().cycle().take(100 * all.len()) {
            let want = HeaderName::from_bytes(written.as_bytes());
            assert_eq!(arena.name(written.as_bytes()).ok(), want.ok(), "{written}");
        }
    }
}
