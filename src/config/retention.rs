//! `[lake.retention]`: which published days are kept.

use super::document::Section;

/// Days that are kept; more than a century of them.
const DAYS_MAX: u64 = 40_000;

/// `[lake.retention]`, or what a `[[table]]` says instead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetentionConfig {
    /// So many of a table's newest published days; 0: all.
    pub keep_days: u64,
    /// The last published day of each month, too.
    pub keep_month_ends: bool,
}

/// What a section says of it; none for what it does not say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct RetentionRule {
    keep_days: Option<u64>,
    keep_month_ends: Option<bool>,
}

impl RetentionRule {
    pub(super) fn read(section: &Section<'_, '_>) -> Self {
        let days = section.integer("keep_days", "days", 0, DAYS_MAX, 0);
        let keep_days = section.has("keep_days").then_some(days);
        Self { keep_days, keep_month_ends: section.boolean("keep_month_ends") }
    }

    /// With what is not said taken from elsewhere.
    pub(super) fn or(self, other: RetentionConfig) -> RetentionConfig {
        RetentionConfig {
            keep_days: self.keep_days.unwrap_or(other.keep_days),
            keep_month_ends: self.keep_month_ends.unwrap_or(other.keep_month_ends),
        }
    }
}

/// Everything.
pub(super) const KEEP_ALL: RetentionConfig = RetentionConfig { keep_days: 0, keep_month_ends: true };
