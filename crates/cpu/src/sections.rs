//! Rows that stay with a thread.
//!
//! A loop of which any thread takes any task leaves each row's results half in one core's cache and half in
//! another's, and the next loop fetches them from there: of a step of many rows that is a good part.
//! So the rows of such a step are cut into one section a thread, the same in all its loops. Who has done
//! its own section helps with the others'.

use std::ops::Range;

use crate::activations::{Panel, panels};
use crate::threads::Pool;

/// Fewest rows of a section. Each thread reads all weights, which takes as long as multiplying few rows.
const LEAST: usize = 48;

/// The panels of each thread's rows.
#[derive(Debug)]
pub struct Sections {
    panels: Vec<Panel>,
    count: usize,
}

impl Sections {
    /// Those of a step of `rows` rows, if they are enough; panels have at most `most` of them.
    pub fn of(pool: &Pool, rows: usize, most: usize) -> Option<Self> {
        let count = pool.threads();
        (count > 1 && rows >= count * LEAST).then(|| Self {
            panels: panels(rows, most).collect(),
            count,
        })
    }

    fn places(&self, section: usize) -> Range<usize> {
        let place = |section: usize| section * self.panels.len() / self.count;
        place(section)..place(section + 1)
    }

    /// Calls `body(places, task)` for each of `tasks` tasks of each section, whose panels have these places
    /// among all.
    pub fn run(&self, pool: &mut Pool, tasks: usize, body: impl Fn(Range<usize>, usize) + Sync) {
        pool.run_own(
            self.count,
            |_| 0..tasks,
            |section, task| {
                body(self.places(section), task);
            },
        );
    }

    /// The items of a section, of `items` in the order of the rows at which they begin.
    fn items(&self, section: usize, items: usize, row: impl Fn(usize) -> usize) -> Range<usize> {
        let first = |section: usize| {
            let Some(panel) = self.panels.get(self.places(section).start) else {
                return items;
            };
            let (mut low, mut high) = (0, items);
            while low < high {
                let middle = low.midpoint(high);
                match row(middle) < panel.start {
                    true => low = middle + 1,
                    false => high = middle,
                }
            }
            low
        };
        first(section)..if section + 1 == self.count {
            items
        } else {
            first(section + 1)
        }
    }
}

/// Calls `body` for each of `items` items, in parallel: an item that begins at a row of a thread's section
/// by that thread, if there are sections. Items are in the order of the rows, which `row` gives.
pub fn by_rows(
    pool: &mut Pool,
    sections: Option<&Sections>,
    items: usize,
    row: impl Fn(usize) -> usize + Sync,
    body: impl Fn(usize) + Sync,
) {
    match sections {
        None => pool.run(items, body),
        Some(sections) => pool.run_own(
            sections.count,
            |section| sections.items(section, items, &row),
            |_, item| body(item),
        ),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[test]
    fn few_rows_have_no_sections() {
        let two = Pool::new(2).unwrap();
        assert!(Sections::of(&two, 2 * LEAST - 1, 16).is_none());
        assert!(Sections::of(&two, 2 * LEAST, 16).is_some());
        assert!(Sections::of(&Pool::new(1).unwrap(), 1000, 16).is_none());
    }

    #[test]
    fn every_panel_meets_every_task_once() {
        for (threads, rows) in [(2, 96), (2, 100), (3, 150), (2, 511), (4, 512)] {
            let mut pool = Pool::new(threads).unwrap();
            let sections = Sections::of(&pool, rows, 16).unwrap();
            let seen = Mutex::new(Vec::new());
            sections.run(&mut pool, 5, |places, task| {
                let mut seen = seen.lock().unwrap();
                seen.extend(
                    sections.panels[places]
                        .iter()
                        .map(|panel| (task, panel.start, panel.len)),
                );
            });
            let mut seen = seen.into_inner().unwrap();
            seen.sort_unstable();
            let all = panels(rows, 16);
            let wanted: Vec<_> = (0..5)
                .flat_map(|task| panels(rows, 16).map(move |p| (task, p.start, p.len)))
                .collect();
            assert_eq!(seen, wanted, "{threads} threads, {} panels", all.count());
        }
    }

    #[test]
    fn every_item_is_done_once_with_the_row_it_begins_at() {
        let mut pool = Pool::new(3).unwrap();
        let sections = Sections::of(&pool, 200, 16).unwrap();
        // Items of seven rows, and none at all.
        for items in [0, 1, 29] {
            let row = |item: usize| 7 * item;
            let done = Mutex::new(Vec::new());
            by_rows(&mut pool, Some(&sections), items, row, |item| {
                done.lock().unwrap().push(item);
            });
            let mut done = done.into_inner().unwrap();
            done.sort_unstable();
            assert_eq!(done, (0..items).collect::<Vec<_>>());
            for section in 0..3 {
                let panels = &sections.panels[sections.places(section)];
                let rows =
                    panels[0].start..panels[panels.len() - 1].start + panels.last().unwrap().len;
                for item in sections.items(section, items, row) {
                    assert!(rows.contains(&row(item)));
                }
            }
        }
    }
}
