//! A figure for people: a table of the sides with bars, and the ratios below.

use super::figure::{Figure, Goal, Side};
use crate::cli::output::{Cell, Column, GREEN, Output, RED, Table, count, number};
use std::io;

/// Characters of the longest bar.
const BAR: usize = 16;

/// Prints a figure.
pub(super) fn print(output: &Output, figure: &Figure) -> io::Result<()> {
    let mut title = output.bold(&format!("{}: {}", figure.measurement, figure.case));
    if figure.events > 0 {
        let events = count(figure.events, "event", "events");
        let rounds = count(figure.rounds.into(), "round", "rounds");
        title.push_str(&format!(", {events}, {rounds}"));
    }
    output.line(&format!("\n{title}"))?;
    if !figure.sides.is_empty() {
        sides(output, figure)?;
    }
    let width = figure.checks.iter().map(|check| check.what.len()).max();
    for check in &figure.checks {
        let mut line = format!(
            "  {:<width$}  {:>8}",
            check.what,
            ratio(check.value.median),
            width = width.unwrap_or(0)
        );
        if check.value.min < check.value.max {
            let (min, max) = (ratio(check.value.min), ratio(check.value.max));
            line.push_str(&format!("  ({min} to {max})"));
        }
        if let (Some(goal), Some(reached)) = (check.goal, check.reached) {
            let (sign, goal) = match goal {
                Goal::AtLeast(goal) => ("at least", goal),
                Goal::AtMost(goal) => ("at most", goal),
            };
            let (style, word) = match reached {
                true => (GREEN, "reached"),
                false => (RED, "missed"),
            };
            let word = output.in_style(style, word);
            line.push_str(&format!("  goal {sign} {}: {word}", ratio(goal)));
        }
        output.line(&line)?;
    }
    Ok(())
}

fn sides(output: &Output, figure: &Figure) -> io::Result<()> {
    let times = figure.unit == "us";
    let columns = vec![
        Column::new(""),
        Column::number(if times { "P50 us" } else { "EVENTS/s" }),
        Column::new("").shrinks(4),
        Column::number("MIN-MAX").optional(),
        Column::number(if times { "P99 us" } else { "" }).optional(),
        Column::number("CPU s"),
        Column::number("SERVER s"),
        Column::number("CMDS"),
        Column::number("MiB"),
        Column::number("+KiB"),
        Column::number("SERVER MiB").optional(),
    ];
    let most = figure.sides.iter().map(|side| side.value.median);
    let most = most.fold(0.0, f64::max);
    let mut table = Table::new(output, columns);
    for side in &figure.sides {
        let Side { value, p99, .. } = *side;
        let spread = match value.min < value.max {
            true => format!("{}-{}", whole(value.min), whole(value.max)),
            false => String::new(),
        };
        table.row(vec![
            Cell::from(side.side),
            Cell::from(whole(value.median)),
            Cell::from(bar(value.median, most)),
            Cell::from(spread),
            Cell::from(p99.map(|p99| whole(p99.median)).unwrap_or_default()),
            Cell::from(format!("{:.3}", side.client_cpu_s)),
            Cell::from(format!("{:.3}", side.server_cpu_s)),
            Cell::from(format!("{:.2}", side.commands)),
            Cell::from(format!("{:.1}", side.rss_kib / 1024.0)),
            Cell::from(format!("{:.0}", side.rss_growth_kib)),
            Cell::from(format!("{:.1}", side.server_kib / 1024.0)),
        ])?;
    }
    table.finish()
}

fn whole(value: f64) -> String {
    match value.is_finite() {
        true => number(value.round().max(0.0) as u64),
        false => "?".to_owned(),
    }
}

fn ratio(value: f64) -> String {
    match value.abs() {
        0.0..100.0 => format!("{value:.2}"),
        _ => format!("{value:.0}"),
    }
}

/// A bar as long as the value is to the greatest.
fn bar(value: f64, most: f64) -> String {
    let length = (value / most * BAR as f64).round();
    match length.is_finite() {
        true => "█".repeat((length as usize).clamp(1, BAR)),
        false => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_are_as_long_as_the_values() {
        let length = |value| bar(value, 100.0).chars().count();
        assert_eq!((length(100.0), length(50.0), length(0.1)), (16, 8, 1));
        assert_eq!(bar(0.0, 0.0), "");
        assert_eq!(
            (ratio(0.946), ratio(1234.5)),
            ("0.95".into(), "1234".into())
        );
        assert_eq!(whole(f64::NAN), "?");
    }
}
