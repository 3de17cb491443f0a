//! Days that can be cut one after the other within seconds: three rules of days whose dates differ at any instant.
//!
//! The connector cuts a day by itself as it ends, so that a test must not run while its days do: there are two sets of
//! rules, whose days all end at noon and at ten by UTC, and a process takes the one that is hours away.

use std::sync::OnceLock;
use std::time::Duration;

use tokio_postgres::Client;

use super::Connector;
use super::lake::value;

/// `[cut] at` and `time_zone` of three rules.
type Rules = [(&'static str, &'static str); 3];

/// 36, 12 and -12 hours behind UTC (the first but for a minute): these days end at noon by UTC, the first at 11:59.
const NOON: Rules = [("23:59", "Etc/GMT+12"), ("00:00", "Etc/GMT+12"), ("00:00", "Etc/GMT-12")];

/// 34, 10 and -14 hours behind UTC: these days end at ten in the morning by UTC.
const TEN: Rules = [("22:00", "Etc/GMT+12"), ("00:00", "Etc/GMT+10"), ("00:00", "Etc/GMT-14")];

/// The rules of this process: their days end two hours from its first look at the earliest.
fn rules() -> &'static Rules {
    static RULES: OnceLock<&Rules> = OnceLock::new();
    RULES.get_or_init(|| {
        let hour = jiff::Timestamp::now().to_zoned(jiff::tz::TimeZone::UTC).hour();
        if (10..22).contains(&hour) { &TEN } else { &NOON }
    })
}

/// Today by each of the rules.
pub async fn days(client: &Client) -> [String; 3] {
    let mut found = [const { String::new() }; 3];
    for ((at, zone), day) in rules().iter().zip(&mut found) {
        // Postgres takes the sign of POSIX, as in the zone's name.
        *day = value(client, &format!("SELECT ((now() AT TIME ZONE '{zone}') - time '{at}')::date")).await;
    }
    assert!(found[0] < found[1] && found[1] < found[2], "three days are three dates: {found:?}");
    found
}

/// Waits until midnight by UTC has passed, if it is minutes away: by the default a day ends then, and with it the one that
/// a test means to cut.
pub fn pass_midnight() {
    const NEAR_SECONDS: i64 = 240;
    let left = 86_400 - jiff::Timestamp::now().as_second().rem_euclid(86_400);
    if left <= NEAR_SECONDS {
        eprintln!("waits for midnight by UTC");
        std::thread::sleep(Duration::from_secs(left as u64));
    }
}

/// Goes over to one of the rules, for processes which are started from now on.
pub fn use_rule(connector: &mut Connector, number: usize) {
    let (at, zone) = rules()[number];
    connector.change("cut", "at", at);
    connector.change("cut", "time_zone", zone);
}
