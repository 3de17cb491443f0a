//! Change to record and back: keys, values, headers and topics. Pure.
