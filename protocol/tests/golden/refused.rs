//! Bytes that are not a message: refused, each with a reason that names what is wrong.

use ocopea_protocol::{
    envelope::{EnvelopeError, LONGEST, open, seal},
    message::{Answer, Request, TaskHint},
    task::TaskSpec,
};

use crate::{Any, TRACE, sealed, values};

/// Why these bytes are refused, read as each of the kinds; at least three of four always refuse by kind alone.
fn faults(bytes: &[u8]) -> [Option<EnvelopeError>; 4] {
    [
        open::<TaskHint>(bytes).err(),
        open::<Request>(bytes).err(),
        open::<Answer>(bytes).err(),
        open::<TaskSpec>(bytes).err(),
    ]
}

fn fault(message: &Any, bytes: &[u8]) -> Option<EnvelopeError> {
    let [hint, request, answer, spec] = faults(bytes);
    match message {
        Any::Hint(_) => hint,
        Any::Request(_) => request,
        Any::Answer(_) => answer,
        Any::Spec(_) => spec,
    }
}

#[test]
fn another_version_is_refused_and_said_which_side_is_old() {
    for (name, message) in values::all() {
        let mut bytes = sealed(&message, TRACE);
        for (theirs, advice) in
            [(0u16, "upgrade the sender"), (2, "upgrade the sender"), (4, "upgrade this side"), (u16::MAX, "this side")]
        {
            bytes[4..6].copy_from_slice(&theirs.to_le_bytes());
            // Not even its payload is looked at: it may be anything.
            let mut short = bytes.clone();
            short.truncate(8);
            for bytes in [&bytes, &short] {
                let error = fault(&message, bytes).unwrap();
                assert!(
                    matches!(error, EnvelopeError::Version { theirs: found } if found == theirs),
                    "{name}: {error}"
                );
                let text = error.to_string();
                assert!(text.contains(&theirs.to_string()) && text.contains(advice), "{text}");
            }
        }
    }
}

#[test]
fn what_is_not_ours_is_refused_at_its_first_bytes() {
    for bytes in
        [&b"HTTP/1.1 200 OK\r\n\r\n"[..], b"{\"task\":1}", &[0; 64], b"ocpa\x02\x00\x01\x00", b"OCP\0\x01\x00\x01\x00"]
    {
        for error in faults(bytes) {
            assert!(matches!(error, Some(EnvelopeError::Magic)), "{error:?}");
        }
    }
}

#[test]
fn a_message_of_another_kind_is_refused_by_its_number() {
    for (name, message) in values::all() {
        let bytes = sealed(&message, TRACE);
        let refused = faults(&bytes).into_iter().flatten().collect::<Vec<_>>();
        assert_eq!(refused.len(), 3, "{name}");
        for error in refused {
            assert!(matches!(error, EnvelopeError::Kind { found, .. } if found == bytes[6]), "{name}: {error}");
        }
        let mut unknown = bytes.clone();
        for kind in [0, 5, 255] {
            unknown[6] = kind;
            let error = fault(&message, &unknown);
            assert!(matches!(error, Some(EnvelopeError::Kind { found, .. }) if found == kind), "{name}");
        }
    }
}

#[test]
fn a_message_cut_off_anywhere_is_refused() {
    for (name, message) in values::all() {
        let bytes = sealed(&message, TRACE);
        for length in 0..bytes.len() {
            let error = fault(&message, &bytes[..length]);
            let error = error.unwrap_or_else(|| panic!("{name} was read from {length} of {} bytes", bytes.len()));
            let named = if length < 8 + TRACE.len() {
                matches!(error, EnvelopeError::Truncated(found) if found == length)
            } else {
                matches!(error, EnvelopeError::Payload(_))
            };
            assert!(named, "{name} cut at {length}: {error}");
            assert!(!error.to_string().is_empty());
        }
    }
}

#[test]
fn bytes_behind_a_message_are_refused_and_counted() {
    for (name, message) in values::all() {
        for behind in [1usize, 7, 1000] {
            let mut bytes = sealed(&message, TRACE);
            bytes.resize(bytes.len() + behind, 0);
            let error = fault(&message, &bytes).unwrap_or_else(|| panic!("{name} was read with {behind} bytes more"));
            assert!(error.to_string().contains(&format!("{behind} bytes behind its end")), "{name}: {error}");
        }
    }
}

/// A flipped bit is refused, or it is another message altogether: never a panic, never a message that its own bytes
/// don't say, never more memory than the message's own length allows.
#[test]
fn a_flipped_bit_is_refused_or_read_as_what_it_says() {
    let (mut refused, mut read) = (0u64, 0u64);
    for (name, message) in values::all() {
        let bytes = sealed(&message, "");
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            let error = fault(&message, &flipped);
            match (bit / 8, &error) {
                (0..4, Some(EnvelopeError::Magic))
                | (4..6, Some(EnvelopeError::Version { .. }))
                | (6, Some(EnvelopeError::Kind { .. })) => {}
                (0..7, _) => panic!("{name}: bit {bit} of the head was flipped: {error:?}"),
                _ => {}
            }
            if error.is_some() {
                refused += 1;
                continue;
            }
            read += 1;
            // What was read is written as those very bytes, or in fewer: numbers have one shortest form.
            let again = match &message {
                Any::Hint(_) => open::<TaskHint>(&flipped).map(|o| seal(&o.message, &o.trace)),
                Any::Request(_) => open::<Request>(&flipped).map(|o| seal(&o.message, &o.trace)),
                Any::Answer(_) => open::<Answer>(&flipped).map(|o| seal(&o.message, &o.trace)),
                Any::Spec(_) => open::<TaskSpec>(&flipped).map(|o| seal(&o.message, &o.trace)),
            };
            let again = again.unwrap().unwrap();
            assert!(again.len() <= flipped.len(), "{name}: bit {bit}");
            assert!(again != bytes, "{name}: bit {bit} made no difference");
        }
    }
    assert!(refused > 1000 && read > 1000, "{refused} refused, {read} read");
}

#[test]
fn a_length_that_lies_costs_no_memory() {
    // A poll's answer that says it holds 2^62 hints, and a text that says it is 2^40 bytes long.
    for payload in [&[5u8, 253, 0, 0, 0, 0, 0, 0, 0, 64][..], &[1, 253, 0, 0, 0, 0, 0, 1, 0, 0, b'x']] {
        let bytes = [&b"OCPA\x03\x00\x03\x00"[..], payload].concat();
        let error = open::<Answer>(&bytes).unwrap_err();
        assert!(matches!(error, EnvelopeError::Payload(_)), "{error}");
    }
}

#[test]
fn what_is_too_long_is_refused_when_it_is_written_and_when_it_is_read() {
    let long = |length: usize| Answer::Refused { why: "x".repeat(length) };
    // Head, variant, length of the text as five bytes.
    let most = LONGEST - 8 - 1 - 5;
    let bytes = seal(&long(most), "").unwrap();
    assert_eq!(bytes.len(), LONGEST);
    assert_eq!(open::<Answer>(&bytes).unwrap().message, long(most));
    let error = seal(&long(most + 1), "").unwrap_err();
    assert!(matches!(error, EnvelopeError::TooLong(_) | EnvelopeError::Encode(_)), "{error}");
    let mut longer = bytes.to_vec();
    longer.push(0);
    let error = open::<Answer>(&longer).unwrap_err();
    assert!(matches!(error, EnvelopeError::TooLong(length) if length == LONGEST + 1), "{error}");
    assert!(error.to_string().contains(&LONGEST.to_string()));
    let error = seal(&Answer::Cancel, &"t".repeat(256)).unwrap_err();
    assert!(error.to_string().contains("255"), "{error}");
    assert!(seal(&Answer::Cancel, &"t".repeat(255)).is_ok());
}

#[test]
fn a_trace_that_is_no_text_is_refused() {
    let bytes = b"OCPA\x03\x00\x03\x02\xff\xfe\x03";
    let error = open::<Answer>(bytes).unwrap_err();
    assert!(matches!(error, EnvelopeError::Head(why) if why.contains("UTF-8")), "{error}");
}

#[test]
fn names_are_parsed_on_arrival_not_believed() {
    // The same length, one letter changed to one that no namespace has.
    let (name, message) = values::all().into_iter().find(|(name, _)| name.ends_with("spec.inspect")).unwrap();
    let mut bytes = sealed(&message, "");
    let at = bytes.windows(4).position(|w| w == b"shop").unwrap();
    for bad in [b"Shop", b"../x", b"a/b.", b"sho\0", b"-hop"] {
        bytes[at..at + 4].copy_from_slice(bad);
        let error = open::<TaskSpec>(&bytes).unwrap_err();
        assert!(error.to_string().contains("namespace"), "{name}: {error}");
    }
}
