//! Days that can be cut one after the other within seconds: three rules of days whose dates differ at any instant.

use tokio_postgres::Client;

use super::lake::value;
use super::{Connector, PATIENCE, wait_until};

/// `[cut] at` and `time_zone`: 36, 12 and -12 hours behind UTC (the first but for a minute).
const RULES: [(&str, &str); 3] = [("23:59", "Etc/GMT+12"), ("00:00", "Etc/GMT+12"), ("00:00", "Etc/GMT-12")];

/// Today by each of the rules. Waits out the minute in which two of them agree.
pub async fn days(client: &Client) -> [String; 3] {
    wait_until(PATIENCE, "three days are three dates", async || {
        let found = today(client).await;
        found[0] < found[1] && found[1] < found[2]
    })
    .await;
    today(client).await
}

async fn today(client: &Client) -> [String; 3] {
    let mut found = [const { String::new() }; 3];
    for ((at, zone), day) in RULES.iter().zip(&mut found) {
        // Postgres takes the sign of POSIX, as in the zone's name.
        *day = value(client, &format!("SELECT ((now() AT TIME ZONE '{zone}') - time '{at}')::date")).await;
    }
    found
}

/// Goes over to one of the rules, for processes which are started from now on.
pub fn use_rule(connector: &mut Connector, number: usize) {
    let (at, zone) = RULES[number];
    connector.change("cut", "at", at);
    connector.change("cut", "time_zone", zone);
}
