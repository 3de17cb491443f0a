//! `[[table]] historic_tail_…`: what of a big table is published weekly.

use jiff::civil::Weekday;

use super::check;
use super::document::Section;

/// Of a table that has a historic tail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HistoricTailConfig {
    /// Days of this name are whole.
    pub weekday: Weekday,
    /// The window that is published daily holds at least so many rows.
    pub recent_rows: u64,
}

/// None: every day is whole.
pub(super) fn read(section: &Section<'_, '_>) -> Option<HistoricTailConfig> {
    use Weekday::{Friday, Monday, Saturday, Sunday, Thursday, Tuesday, Wednesday};
    let words = [
        ("monday", Monday),
        ("tuesday", Tuesday),
        ("wednesday", Wednesday),
        ("thursday", Thursday),
        ("friday", Friday),
        ("saturday", Saturday),
        ("sunday", Sunday),
    ];
    let weekday = section.text("historic_tail_weekday", |text| check::word(text, &words, &[]));
    let recent_rows = section.integer("historic_tail_recent_rows", "rows", 1, u64::MAX >> 1, 10_000_000);
    if section.has("historic_tail_recent_rows") && !section.has("historic_tail_weekday") {
        section.note(
            "historic_tail_recent_rows",
            "given without historic_tail_weekday, which switches it on; expected both".to_owned(),
        );
    }
    weekday.map(|weekday| HistoricTailConfig { weekday, recent_rows })
}
