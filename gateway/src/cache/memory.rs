//! Memory for what is stored: buffers of few sizes, given back when the last reader lets go of one, and
//! used again by any worker.
//!
//! Workers store and evict what others have stored. The C library's heaps are one for each thread, and
//! what is free in one does not serve another: with buffers of their own the responses lie in half as
//! much memory again as they have bytes.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;

/// Free buffers are kept up to this many bytes in all.
const MAX_FREE_BYTES: usize = 4 << 20;
const SMALLEST_BYTES: usize = 64;
/// Eight sizes to each power of two; larger ones than the last are not used again.
const CLASSES: usize = 8 * 15;

static FREE: [Mutex<Vec<Vec<u8>>>; CLASSES] = [const { Mutex::new(Vec::new()) }; CLASSES];
static FREE_BYTES: AtomicUsize = AtomicUsize::new(0);

/// A buffer on loan.
struct Buffer(Vec<u8>);

/// `bytes` in memory of their own.
pub fn copied(bytes: &[u8]) -> Bytes {
    let size = size_class(bytes.len());
    let mut buffer = take(size).unwrap_or_else(|| Vec::with_capacity(size));
    buffer.extend_from_slice(bytes);
    Bytes::from_owner(Buffer(buffer))
}

/// The memory that so many bytes take.
pub fn size_class(bytes: usize) -> usize {
    let step = (bytes.next_power_of_two() / 16).max(SMALLEST_BYTES);
    bytes.div_ceil(step).max(1) * step
}

fn take(size: usize) -> Option<Vec<u8>> {
    let buffer = FREE.get(class(size))?.lock().unwrap_or_else(PoisonError::into_inner).pop()?;
    FREE_BYTES.fetch_sub(size, Relaxed);
    Some(buffer)
}

/// Where buffers of this size, one of [`size_class`], lie.
fn class(size: usize) -> usize {
    let power = size.next_power_of_two();
    let step = (power / 16).max(SMALLEST_BYTES);
    let steps_below = (power - size) / step;
    // Up to 1 KiB every step has its own place; from there on eight to each power.
    match power {
        ..=1024 => size / SMALLEST_BYTES,
        _ => 16 + 8 * (power.trailing_zeros() as usize - 10) - steps_below,
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let size = self.0.capacity();
        let Some(free) = FREE.get(class(size)).filter(|_| size == size_class(size)) else { return };
        // Counted before it can be taken: the count would fall below zero otherwise.
        if FREE_BYTES.fetch_add(size, Relaxed) + size > MAX_FREE_BYTES {
            FREE_BYTES.fetch_sub(size, Relaxed);
            return;
        }
        self.0.clear();
        free.lock().unwrap_or_else(PoisonError::into_inner).push(std::mem::take(&mut self.0));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_size_has_a_place_of_its_own() {
        let mut before = (0, 0);
        for bytes in 1..300_000 {
            let size = size_class(bytes);
            assert!(size >= bytes && (size <= bytes + bytes / 8 + 64), "{bytes} in {size}");
            assert_eq!(size_class(size), size, "{size}");
            let place = (size, class(size));
            assert_eq!(place.0 == before.0, place.1 == before.1, "{bytes}: {place:?} after {before:?}");
            assert!(place >= before, "{bytes}: {place:?} after {before:?}");
            before = place;
        }
    }

    #[test]
    fn what_is_free_is_counted_whoever_takes_it_meanwhile() {
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..200_000 {
                        drop(copied(b"one size for all of them"));
                        assert!(FREE_BYTES.load(Relaxed) < 2 * MAX_FREE_BYTES);
                    }
                });
            }
        });
        assert!(FREE_BYTES.load(Relaxed) <= MAX_FREE_BYTES);
    }

    #[test]
    fn bytes_are_those_given() {
        for length in [0, 1, 63, 64, 65, 5_000, 100_000] {
            let bytes: Vec<u8> = (0..length).map(|n| n as u8).collect();
            let copies = [copied(&bytes), copied(&bytes)];
            assert!(copies.iter().all(|copy| *copy == bytes));
        }
    }
}
