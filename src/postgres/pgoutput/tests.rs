//! The decoder on messages built from the documentation's tables, shortened, lengthened, and changed.

use proptest::prelude::*;

use super::*;

fn message(parts: &[&[u8]]) -> Vec<u8> {
    parts.concat()
}

/// One valid message of each kind, built from the documentation's tables.
fn samples() -> Vec<Vec<u8>> {
    let lsn = &0x16_B374_D848_u64.to_be_bytes()[..];
    let end = &0x16_B374_D878_u64.to_be_bytes()[..];
    let time = &1_000_000_i64.to_be_bytes()[..];
    let oid = &16_384_u32.to_be_bytes()[..];
    let tuple = b"\0\x04nut\0\0\0\x03abct\0\0\0\0";
    vec![
        message(&[b"B", lsn, time, &7_u32.to_be_bytes()]),
        message(&[b"C\0", lsn, end, time]),
        message(&[b"O", lsn, b"upstream\0"]),
        message(&[
            b"R",
            oid,
            b"public\0t\0d\0\x02",
            b"\x01id\0",
            oid,
            b"\xff\xff\xff\xff",
            b"\0v\0",
            oid,
            b"\0\0\0\x08",
        ]),
        message(&[b"Y", oid, b"public\0mood\0"]),
        message(&[b"I", oid, b"N", tuple]),
        message(&[b"U", oid, b"N", tuple]),
        message(&[b"U", oid, b"K", tuple, b"N", tuple]),
        message(&[b"U", oid, b"O", tuple, b"N", tuple]),
        message(&[b"D", oid, b"K", tuple]),
        message(&[b"D", oid, b"O", tuple]),
        message(&[b"T", &2_u32.to_be_bytes(), b"\x03", oid, oid]),
        message(&[b"M\x01", lsn, b"prefix\0", &3_u32.to_be_bytes(), b"\0\xff1"]),
    ]
}

/// One valid message about transactions of each kind.
fn controls() -> Vec<Vec<u8>> {
    let lsn = &0x16_B374_D848_u64.to_be_bytes()[..];
    let end = &0x16_B374_D878_u64.to_be_bytes()[..];
    let time = &1_000_000_i64.to_be_bytes()[..];
    let (xid, subxid) = (&7_u32.to_be_bytes()[..], &8_u32.to_be_bytes()[..]);
    vec![
        message(&[b"S", xid, b"\x01"]),
        message(&[b"E"]),
        message(&[b"c", xid, b"\0", lsn, end, time]),
        message(&[b"A", xid, subxid]),
        message(&[b"A", xid, subxid, lsn, time]),
        message(&[b"b", lsn, end, time, xid, b"gid\0"]),
        message(&[b"P\0", lsn, end, time, xid, b"gid\0"]),
        message(&[b"p\0", lsn, end, time, xid, b"gid\0"]),
        message(&[b"K\0", lsn, end, time, xid, b"gid\0"]),
        message(&[b"r\0", lsn, end, time, time, xid, b"gid\0"]),
    ]
}

/// The samples that may be part of a transaction in progress, with an id behind the tag; an origin has none.
fn in_progress() -> Vec<Vec<u8>> {
    let samples = samples();
    let parts = samples.iter().filter(|bytes| !b"BCO".contains(&bytes[0]));
    parts.map(|bytes| message(&[&bytes[..1], &7_u32.to_be_bytes(), &bytes[1..]])).collect()
}

#[test]
fn messages_about_transactions_keep_their_fields() {
    let (commit_lsn, end_lsn) = (Lsn(0x16_B374_D848), Lsn(0x16_B374_D878));
    let us = POSTGRES_EPOCH_US + 1_000_000;
    let of = Prepared { prepare_lsn: commit_lsn, end_lsn, prepare_us: us, xid: 7, gid: "gid" };
    let expected = [
        Control::StreamStart { xid: 7, first: true },
        Control::StreamStop,
        Control::StreamCommit { xid: 7, commit_lsn, end_lsn, commit_us: us },
        Control::StreamAbort { xid: 7, subxid: 8, aborted: None },
        Control::StreamAbort { xid: 7, subxid: 8, aborted: Some((commit_lsn, us)) },
        Control::BeginPrepare(of),
        Control::Prepare(of),
        Control::StreamPrepare(of),
        Control::CommitPrepared { commit_lsn, end_lsn, commit_us: us, xid: 7, gid: "gid" },
        Control::RollbackPrepared {
            prepare_end_lsn: commit_lsn,
            end_lsn,
            prepare_us: us,
            rollback_us: us,
            xid: 7,
            gid: "gid",
        },
    ];
    for (bytes, expected) in controls().iter().zip(expected) {
        assert_eq!(Control::decode(bytes), Ok(Some(expected)));
        assert!(decode(bytes).is_err(), "protocol 1 has no {bytes:?}");
    }
    for bytes in samples() {
        assert_eq!(Control::decode(&bytes), Ok(None), "{bytes:?}");
    }
}

#[test]
fn a_message_of_a_transaction_in_progress_is_one_of_protocol_1_without_its_id() {
    let whole: Vec<_> = samples().into_iter().filter(|bytes| !b"BCO".contains(&bytes[0])).collect();
    for (bytes, whole) in in_progress().iter().zip(whole) {
        let part = streamed(bytes).unwrap().unwrap();
        assert_eq!((part.xid, message(&[&[part.tag], part.body])), (7, whole));
    }
    assert_eq!(streamed(&samples()[2]), Ok(None), "an origin is not content");
    for bytes in [&samples()[0], &samples()[1], &controls()[0], &controls()[2]] {
        assert!(matches!(streamed(bytes), Err(DecodeError::Unexpected { .. })), "{bytes:?}");
    }
    assert!(matches!(streamed(b"I\0\0\0"), Err(DecodeError::Truncated { .. })));
}

#[test]
fn every_shortened_or_lengthened_message_about_transactions_is_refused() {
    for bytes in controls() {
        for length in 0..bytes.len() {
            // An abort without LSN and time is whole.
            if bytes[0] == b'A' && length == 9 {
                continue;
            }
            assert!(Control::decode(&bytes[..length]).is_err(), "{:?} was taken", &bytes[..length]);
        }
        let longer = [&bytes[..], b"x"].concat();
        assert!(Control::decode(&longer).is_err(), "{longer:?}");
    }
}

#[test]
fn tuples_give_null_unchanged_and_text() {
    let bytes = &samples()[5];
    let Ok(Message::Insert { relation: 16_384, new }) = decode(bytes) else { panic!("{:?}", decode(bytes)) };
    let values: Vec<_> = new.values().collect();
    assert_eq!(values, [Value::Null, Value::Unchanged, Value::Text(b"abc"), Value::Text(b"")]);
}

#[test]
fn commit_and_truncate_and_messages_keep_their_fields() {
    let samples = samples();
    let commit = Message::Commit {
        commit_lsn: Lsn(0x16_B374_D848),
        end_lsn: Lsn(0x16_B374_D878),
        commit_us: POSTGRES_EPOCH_US + 1_000_000,
    };
    assert_eq!(decode(&samples[1]), Ok(commit));
    let truncate = Message::Truncate { cascade: true, restart_identity: true, relations: vec![16_384; 2] };
    assert_eq!(decode(&samples[11]), Ok(truncate));
    let lsn = Lsn(0x16_B374_D848);
    let logical = Message::Logical { transactional: true, lsn, prefix: "prefix", content: b"\0\xff1" };
    assert_eq!(decode(&samples[12]), Ok(logical));
}

#[test]
fn every_shortened_or_lengthened_message_is_refused() {
    for bytes in samples() {
        assert!(decode(&bytes).is_ok(), "{bytes:?}");
        for length in 0..bytes.len() {
            assert!(decode(&bytes[..length]).is_err(), "{:?} was taken", &bytes[..length]);
        }
        let longer = [&bytes[..], b"x"].concat();
        assert!(matches!(decode(&longer), Err(DecodeError::Leftover { count: 1, .. })), "{longer:?}");
    }
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(tag in prop::sample::select(b"BCORYIUDTMSEcAbPpKr".to_vec()), body in prop::collection::vec(any::<u8>(), 0..200)) {
        let bytes = [&[tag][..], &body].concat();
        let _ = (Control::decode(&bytes), streamed(&bytes));
        if let Ok(Message::Insert { new, .. } | Message::Update { new, .. }) = decode(&bytes) {
            prop_assert_eq!(new.values().count(), new.len());
        }
    }

    #[test]
    fn no_changed_byte_of_a_message_about_transactions_makes_it_panic(which in 0..10_usize, at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let mut bytes = controls().swap_remove(which);
        let at = at.index(bytes.len());
        bytes[at] = byte;
        let _ = (Control::decode(&bytes), streamed(&bytes));
    }

    #[test]
    fn no_changed_byte_makes_it_panic(which in 0..13_usize, at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let mut bytes = samples().swap_remove(which);
        let at = at.index(bytes.len());
        bytes[at] = byte;
        if let Ok(Message::Insert { new, .. } | Message::Update { new, .. }) = decode(&bytes) {
            prop_assert_eq!(new.values().count(), new.len());
        }
    }
}
