//! Cron expressions in time zones. Croner searches; jiff knows the zones.
//!
//! Where the clock goes back, an expression of one time of day ticks once, in the first of the two hours; where the hour
//! with its time is missing, it ticks at the first moment behind it. All others tick as the clock shows: in both of the
//! two hours, and not in one that is missing.

use super::timing::MAX_TICK;
use croner::errors::CronError;
use croner::parser::{CronParser, Seconds, Year};
use croner::time::{CivilDate, CivilDateTime, CivilTime, CronDateTime, Resolution, Weekday};
use jiff::civil::DateTime;
use jiff::tz::{AmbiguousOffset, TimeZone};
use jiff::{SignedDuration, Timestamp, ZonedDateTime};
use std::cmp::Ordering;

/// Bytes of an expression.
const MAX_EXPRESSION: usize = 128;
/// Bytes of a zone's name.
const MAX_ZONE: usize = 64;
/// What the search steps over where it finds no way on: a zone can skip a whole day.
const HOP: i64 = 12 * 3600;
/// How often.
const HOPS: i64 = 4;

/// A cron expression in a time zone.
#[derive(Clone, Debug)]
pub(super) struct Expression {
    cron: croner::Cron,
    zone: TimeZone,
}

impl Expression {
    /// Reads an expression of five fields, or of six with seconds, or seven with years, and the IANA name of a zone.
    pub(super) fn parse(expression: &str, zone: &str) -> Result<Self, String> {
        if expression.len() > MAX_EXPRESSION || !expression.is_ascii() {
            return Err(format!(
                "cron: not at most {MAX_EXPRESSION} ASCII characters"
            ));
        }
        let parser = CronParser::builder()
            .seconds(Seconds::Optional)
            .year(Year::Optional)
            .build();
        let cron = parser
            .parse(expression)
            .map_err(|error| format!("cron: {error}"))?;
        Ok(Self {
            cron,
            zone: zone_of(zone)?,
        })
    }

    /// The first second after that one in which it ticks, in Unix seconds.
    pub(super) fn next_after(&self, seconds: i64) -> Option<i64> {
        // Twice the same without end would be the worst: the search goes on from a little later instead.
        let found = |from: i64| {
            let found = self
                .cron
                .find_next_occurrence(&self.at(from)?, false)
                .ok()?;
            let found = found.0.timestamp().as_second();
            (found > seconds).then_some(found)
        };
        (0..HOPS).find_map(|hop| found(seconds.checked_add(hop * HOP)?))
    }

    fn at(&self, seconds: i64) -> Option<Moment> {
        let most = i64::try_from(MAX_TICK / 1000).ok()?;
        let seconds = Some(seconds).filter(|seconds| (0..most).contains(seconds))?;
        let at = Timestamp::from_second(seconds).ok()?;
        Some(Moment(at.to_zoned_datetime(self.zone.clone())))
    }
}

/// The zone of that name, as IANA's database has it.
fn zone_of(name: &str) -> Result<TimeZone, String> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'/' | b'_' | b'-' | b'+');
    let unknown = || {
        format!(
            "time_zone: {:?} is not known here",
            name.escape_debug().to_string()
        )
    };
    if !(1..=MAX_ZONE).contains(&name.len()) || !name.bytes().all(plain) || name.starts_with('/') {
        return Err(format!(
            "time_zone: not the IANA name of a zone, such as Europe/Berlin, of at most {MAX_ZONE} characters"
        ));
    }
    match name {
        "UTC" => Ok(TimeZone::UTC),
        _ => TimeZone::get(name).map_err(|_| unknown()),
    }
}

/// What croner searches over.
#[derive(Clone)]
struct Moment(ZonedDateTime);

impl CronDateTime for Moment {
    fn to_civil(&self) -> CivilDateTime {
        let at = self.0.datetime();
        CivilDateTime::new(
            CivilDate::from_parts_unchecked(
                i32::from(at.year()),
                at.month().cast_unsigned().into(),
                at.day().cast_unsigned().into(),
            ),
            CivilTime::from_parts_unchecked(
                at.hour().cast_unsigned().into(),
                at.minute().cast_unsigned().into(),
                at.second().cast_unsigned().into(),
            ),
        )
    }

    fn civil_weekday(&self) -> Weekday {
        let day = self.0.weekday().to_sunday_zero_offset();
        Weekday::from_days_from_sunday(day.cast_unsigned().into())
    }

    fn resolve_civil(&self, civil: CivilDateTime) -> Result<Resolution<Self>, CronError> {
        let at = civil_of(civil).ok_or(CronError::InvalidDate)?;
        let zoned = |zoned: Result<ZonedDateTime, jiff::Error>| {
            let zoned = zoned.map_err(|_| CronError::InvalidTime)?;
            Ok(Moment(zoned))
        };
        let ambiguous = self.0.time_zone().to_ambiguous_zoned_datetime(at);
        Ok(match ambiguous.offset() {
            AmbiguousOffset::Unambiguous { .. } => {
                Resolution::Single(zoned(ambiguous.unambiguous())?)
            }
            AmbiguousOffset::Fold { .. } => {
                let earlier = zoned(ambiguous.clone().earlier())?;
                Resolution::Ambiguous(earlier, zoned(ambiguous.later())?)
            }
            AmbiguousOffset::Gap { .. } => Resolution::Gap,
        })
    }

    fn checked_add_seconds(&self, seconds: i64) -> Option<Self> {
        let later = self.0.checked_add(SignedDuration::from_secs(seconds));
        later.ok().map(Moment)
    }

    fn cmp_instant(&self, other: &Self) -> Ordering {
        self.0.timestamp().cmp(&other.0.timestamp())
    }
}

fn civil_of(civil: CivilDateTime) -> Option<DateTime> {
    let part = |part: u32| i8::try_from(part).ok();
    DateTime::new(
        i16::try_from(civil.year()).ok()?,
        part(civil.month())?,
        part(civil.day())?,
        part(civil.hour())?,
        part(civil.minute())?,
        part(civil.second())?,
        0,
    )
    .ok()
}
