//! Any bytes given to the pgoutput decoder: it understands them to the last byte or refuses them, and what it
//! understood can be walked without a panic.

#![no_main]

use libfuzzer_sys::fuzz_target;
use tidemark::change::Value;
use tidemark::postgres::pgoutput::{Control, Message, OldTuple, Tuple, decode, streamed};

fuzz_target!(|bytes: &[u8]| {
    let control = Control::decode(bytes);
    if let Ok(Some(part)) = streamed(bytes) {
        assert_eq!(part.body.len() + 5, bytes.len());
        let _ = decode(&[&[part.tag], part.body].concat());
    }
    assert!(!matches!(control, Ok(Some(_))) || decode(bytes).is_err(), "a message of two kinds");
    let Ok(message) = decode(bytes) else { return };
    let tuples = match message {
        Message::Insert { new, .. } => [Some(new), None],
        Message::Update { old, new, .. } => [Some(new), old.map(tuple_of)],
        Message::Delete { old, .. } => [Some(tuple_of(old)), None],
        _ => [None, None],
    };
    for tuple in tuples.into_iter().flatten() {
        walk(&tuple, bytes.len());
    }
});

fn tuple_of(old: OldTuple<'_>) -> Tuple<'_> {
    match old {
        OldTuple::Key(tuple) | OldTuple::Full(tuple) => tuple,
    }
}

/// Every column is there, and together they are no longer than the message.
fn walk(tuple: &Tuple<'_>, message_len: usize) {
    assert_eq!(tuple.values().count(), tuple.len());
    let bytes: usize = tuple.values().map(|value| if let Value::Text(text) = value { text.len() } else { 0 }).sum();
    assert!(bytes < message_len, "{bytes} bytes of columns in a message of {message_len}");
}
