//! Several pieces of work at once, whose results are taken in their order.

use std::sync::mpsc::sync_channel;

use crate::runtime::{Error, Result};

/// Does each piece of work on one of `threads`, and has `consume` ask for the results in order. A thread is at most one
/// result ahead of what was asked for, so what waits is bounded. An error ends the thread that meets it; the others end
/// when `consume` has.
pub(super) fn at_once<W: Send, R: Send, T>(
    work: Vec<W>,
    threads: usize,
    run: impl Fn(W) -> Result<R> + Sync,
    consume: impl FnOnce(&mut dyn FnMut() -> Result<R>) -> Result<T>,
) -> Result<T> {
    let threads = threads.min(work.len());
    let none_left = || Error::operator("a merge has asked for more than there is; please report it");
    if threads <= 1 {
        let mut work = work.into_iter();
        return consume(&mut || run(work.next().ok_or_else(none_left)?));
    }
    let mut shares: Vec<Vec<W>> = (0..threads).map(|_| Vec::new()).collect();
    for (number, piece) in work.into_iter().enumerate() {
        shares[number % threads].push(piece);
    }
    std::thread::scope(|scope| {
        let mut results = Vec::with_capacity(threads);
        for share in shares {
            let (send, receive) = sync_channel(0);
            let run = &run;
            scope.spawn(move || {
                for piece in share {
                    let result = run(piece);
                    let failed = result.is_err();
                    // Nobody receives any more: something else has failed.
                    if send.send(result).is_err() || failed {
                        return;
                    }
                }
            });
            results.push(receive);
        }
        let mut next = (0..threads).cycle();
        consume(&mut || {
            let receive = next.next().and_then(|thread| results.get(thread)).ok_or_else(none_left)?;
            receive.recv().map_err(|_| none_left())?
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_come_in_order_however_many_threads_there_are_and_an_error_ends_all() {
        for threads in [1, 2, 3, 50] {
            let all =
                |next: &mut dyn FnMut() -> Result<u32>| (0..20).map(|_| next()).collect::<Result<Vec<_>>>();
            let squares = at_once((0..20).collect(), threads, |n: u32| Ok(n * n), all).unwrap();
            assert_eq!(squares, (0..20).map(|n| n * n).collect::<Vec<_>>());
            let failing = |n: u32| if n == 7 { Err(Error::retry("seven")) } else { Ok(n) };
            let error = at_once((0..20).collect(), threads, failing, all).unwrap_err();
            assert!(error.to_string().contains("seven"), "{error}");
        }
    }
}
