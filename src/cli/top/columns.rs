//! How wide the columns of a panel are.

use super::row::{Column, Content, Row};
use unicode_width::UnicodeWidthStr;

/// Between two columns.
pub(super) const GAP: u16 = 2;
/// A sparkline of fewer values is left out.
const FEW: usize = 3;
/// The widest graph, and where there is room for everything.
const WIDEST: (u16, u16) = (60, 20);
/// More room than anything fills.
pub(super) const UNBOUNDED: u16 = 1000;

/// The width of each column; `None` where there is no room for it.
///
/// First everything is as narrow as it may be, and what is least needed goes until it fits. What is
/// left goes to the texts, then to the graphs.
pub(super) fn widths(
    columns: &[Column],
    headings: &[String],
    rows: &[Row],
    room: u16,
) -> Vec<Option<u16>> {
    let natural = |at: usize| {
        let texts = rows.iter().filter_map(|row| match &row.cells[at].content {
            Content::Text(text) => Some(text.width()),
            Content::Spark(_) | Content::Bar(_) => None,
        });
        texts.chain([headings[at].width()]).max().unwrap_or(0) as u16
    };
    let natural: Vec<u16> = (0..columns.len()).map(natural).collect();
    let least = |at: usize| match columns[at] {
        Column {
            least: Some(least),
            grows: true,
            ..
        } => least.max(headings[at].width() as u16),
        Column {
            least: Some(least), ..
        } => least.min(natural[at]),
        _ => natural[at],
    };
    // So few values show nothing.
    let is_bare = |at: usize| {
        let mut cells = rows.iter().map(|row| &row.cells[at].content);
        !rows.is_empty()
            && cells.all(|cell| matches!(cell, Content::Spark(values) if values.len() < FEW))
    };
    let shown = |at: usize| Some(least(at)).filter(|_| at == 0 || !is_bare(at));
    let mut widths: Vec<Option<u16>> = (0..columns.len()).map(shown).collect();
    loop {
        let kept = widths.iter().flatten();
        let needs = kept.clone().map(|w| u32::from(*w)).sum::<u32>()
            + u32::from(GAP) * (kept.count().max(1) as u32 - 1);
        if let Some(mut spare) = u32::from(room).checked_sub(needs) {
            for at in (0..columns.len()).filter(|at| !columns[*at].grows) {
                grow(&mut widths[at], natural[at], &mut spare);
            }
            for at in (0..columns.len()).filter(|at| columns[*at].grows) {
                let widest = match room >= UNBOUNDED {
                    true => WIDEST.1,
                    false => WIDEST.0,
                };
                grow(&mut widths[at], widest, &mut spare);
            }
            return widths;
        }
        let kept = (0..columns.len()).filter(|at| widths[*at].is_some());
        // The least needed, of those the last.
        let least_needed = kept.max_by_key(|at| (columns[*at].spare, *at));
        match least_needed {
            Some(at) if at > 0 => widths[at] = None,
            _ => {
                widths[0] = Some(room);
                return widths;
            }
        }
    }
}

fn grow(width: &mut Option<u16>, most: u16, spare: &mut u32) {
    if let Some(width) = width {
        let more = u32::from(most.saturating_sub(*width)).min(*spare);
        *width += more as u16;
        *spare -= more;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::top::panel::Panel;
    use crate::cli::top::panel::columns;
    use proptest::prelude::*;

    fn used(widths: &[Option<u16>]) -> u32 {
        let kept = widths.iter().flatten();
        kept.clone().map(|width| u32::from(*width)).sum::<u32>()
            + u32::from(GAP) * (kept.count() as u32 - 1)
    }

    proptest! {
        #[test]
        fn columns_fit_whatever_the_room(room in 1..300u16, panel in 0..7usize) {
            let columns = columns(Panel::ALL[panel]);
            let headings: Vec<String> = columns.iter().map(|c| c.heading.to_owned()).collect();
            let widths = widths(columns, &headings, &[], room);
            prop_assert!(used(&widths) <= u32::from(room));
            prop_assert!(widths[0].is_some());
        }
    }
}
