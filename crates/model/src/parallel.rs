//! Converting large tensors on all cores.

/// Bytes of a result below which another thread costs more than it saves.
const LEAST: usize = 1 << 18;

/// A new array of `rows` rows of `row_bytes` bytes, each filled by `fill(row, bytes)`.
pub(crate) fn fill_rows(
    rows: usize,
    row_bytes: usize,
    fill: impl Fn(usize, &mut [u8]) + Sync,
) -> Vec<u8> {
    let mut bytes = vec![0; rows * row_bytes];
    if bytes.is_empty() {
        return bytes;
    }
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let workers = cores.min(bytes.len() / LEAST + 1);
    let share = rows.div_ceil(workers);
    let fill = &fill;
    std::thread::scope(|scope| {
        for (worker, part) in bytes.chunks_mut(share * row_bytes).enumerate() {
            let mut work = move || {
                for (i, row) in part.chunks_exact_mut(row_bytes).enumerate() {
                    fill(worker * share + i, row);
                }
            };
            if workers == 1 {
                work();
            } else {
                scope.spawn(work);
            }
        }
    });
    bytes
}

/// What `of` makes of each of `items`, which are alike in size, on all cores.
pub(crate) fn map<T: Sync, R: Send>(items: &[T], of: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let share = items.len().div_ceil(cores).max(1);
    let of = &of;
    std::thread::scope(|scope| {
        let part = |part: &'_ [T]| part.iter().map(of).collect::<Vec<R>>();
        let (mine, others) = items.split_at(share.min(items.len()));
        let others: Vec<_> = others
            .chunks(share)
            .map(|others| scope.spawn(move || part(others)))
            .collect();
        let mut made = part(mine);
        for other in others {
            match other.join() {
                Ok(more) => made.extend(more),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        made
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_is_filled_once() {
        for (rows, row_bytes) in [(0, 4), (3, 0), (1, 1), (7, 100_003), (1000, 1024)] {
            let bytes = fill_rows(rows, row_bytes, |row, out| {
                out.iter_mut().for_each(|b| *b += 1 + (row % 200) as u8);
            });
            assert_eq!(bytes.len(), rows * row_bytes);
            let right =
                |(row, bytes): (usize, &[u8])| bytes.iter().all(|b| *b == 1 + (row % 200) as u8);
            assert!(bytes.chunks(row_bytes.max(1)).enumerate().all(right));
        }
    }
}
