//! How many requests are under way, per route and per client, for the whole process.
//!
//! The proxy asks once a request; what it gets is given back when dropped, on whatever path the request
//! ends. Only configured limits are counted.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

const SHARDS: usize = 16;

/// Requests of one route under way.
pub type Route = Arc<AtomicU32>;

/// Requests of each client under way, within a scope: a route, or the whole gateway.
#[derive(Default)]
pub struct Clients {
    hasher: RandomState,
    shards: [Mutex<HashMap<(u32, IpAddr), u32>>; SHARDS],
}

/// The limits of one route.
#[derive(Default)]
pub struct Caps {
    pub route: Option<(Route, u32)>,
    /// Scopes and their limits for each client.
    pub clients: Vec<(u32, u32)>,
}

/// One request's place under a limit.
pub enum Permit {
    Route(Route),
    Client { clients: Arc<Clients>, holder: (u32, IpAddr) },
}

/// Whose limit is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Crowded {
    Route,
    Client,
}

impl Caps {
    pub fn are_some(&self) -> bool {
        self.route.is_some() || !self.clients.is_empty()
    }

    /// A place under each of the limits, or under none.
    pub fn enter(&self, clients: &Arc<Clients>, client: IpAddr) -> Result<Vec<Permit>, Crowded> {
        let mut permits = Vec::new();
        for (scope, limit) in &self.clients {
            permits.push(clients.enter(*scope, client, *limit).ok_or(Crowded::Client)?);
        }
        if let Some((route, limit)) = &self.route {
            permits.push(enter_route(route, *limit).ok_or(Crowded::Route)?);
        }
        Ok(permits)
    }
}

/// Takes a place on `route`; `None`: `limit` requests are under way.
fn enter_route(route: &Route, limit: u32) -> Option<Permit> {
    let permit = Permit::Route(route.clone());
    if route.fetch_add(1, Relaxed) < limit {
        return Some(permit);
    }
    drop(permit);
    None
}

impl Clients {
    /// Takes a place for `client` in `scope`; `None`: `limit` of its requests are under way.
    pub fn enter(self: &Arc<Self>, scope: u32, client: IpAddr, limit: u32) -> Option<Permit> {
        let holder = (scope, client);
        let mut shard = self.shard(&holder).lock().unwrap_or_else(PoisonError::into_inner);
        let count = shard.entry(holder).or_default();
        if *count >= limit {
            return None;
        }
        *count += 1;
        Some(Permit::Client { clients: self.clone(), holder })
    }

    fn leave(&self, holder: (u32, IpAddr)) {
        let mut shard = self.shard(&holder).lock().unwrap_or_else(PoisonError::into_inner);
        if let Entry::Occupied(mut entry) = shard.entry(holder) {
            *entry.get_mut() -= 1;
            if *entry.get() == 0 {
                entry.remove();
            }
        }
    }

    fn shard(&self, holder: &(u32, IpAddr)) -> &Mutex<HashMap<(u32, IpAddr), u32>> {
        &self.shards[self.hasher.hash_one(holder) as usize % SHARDS]
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        match self {
            Self::Route(route) => {
                route.fetch_sub(1, Relaxed);
            }
            Self::Client { clients, holder } => clients.leave(*holder),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_given_back_can_be_taken_again() {
        let (clients, route) = (Arc::new(Clients::default()), Route::default());
        let (one, other) = (IpAddr::from([192, 0, 2, 1]), IpAddr::from([192, 0, 2, 2]));
        let held: Vec<_> = (0..2).map(|_| clients.enter(1, one, 2).unwrap()).collect();
        assert!(clients.enter(1, one, 2).is_none());
        assert!(clients.enter(1, one, 3).is_some(), "a raised limit counts those under way");
        assert!(clients.enter(1, other, 2).is_some() && clients.enter(2, one, 2).is_some());
        drop(held);
        assert!(clients.enter(1, one, 2).is_some());
        assert!(clients.shards.iter().all(|shard| shard.lock().unwrap().is_empty()), "nothing stays behind");

        let held = enter_route(&route, 1).unwrap();
        assert!(enter_route(&route, 1).is_none());
        drop(held);
        assert!(enter_route(&route, 1).is_some());
    }

    #[test]
    fn threads_never_hold_more_than_the_limit() {
        let (clients, route) = (Arc::new(Clients::default()), Route::default());
        let (inside, client) = (AtomicU32::new(0), IpAddr::from([192, 0, 2, 1]));
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..20_000 {
                        let Some(_route) = enter_route(&route, 3) else { continue };
                        let Some(_client) = clients.enter(0, client, 2) else { continue };
                        assert!(inside.fetch_add(1, Relaxed) < 2);
                        inside.fetch_sub(1, Relaxed);
                    }
                });
            }
        });
        assert_eq!(route.load(Relaxed), 0);
    }
}
