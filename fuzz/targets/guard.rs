//! What a broker sends: the guard lets nothing through that the client library can't read, and changes nothing twice.
#![no_main]

use amq_protocol::frame::parse_frame;
use ocopea_protocol::bus::rabbitmq::guarded;

/// A frame of channel 1.
fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
    let mut out = vec![kind, 0, 1];
    out.extend_from_slice(&u32::try_from(payload.len()).unwrap_or(0).to_be_bytes());
    out.extend_from_slice(payload);
    out.push(0xCE);
    out
}

fn again(out: &[u8]) {
    assert_eq!(guarded(out).expect("what came through comes through"), out);
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Ok(out) = guarded(bytes) {
        again(&out);
    }
    // Properties of a message, behind a head that is always in order.
    let mut header = vec![0, 60, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3];
    header.extend_from_slice(bytes);
    if bytes.len() < 2 || header.len() > 60_000 {
        return;
    }
    let out = guarded(&frame(2, &header)).expect("a frame in order");
    again(&out);
    if let Err(error) = parse_frame(&out[..]) {
        panic!("the library can't read what came through: {error:?}");
    }
    // Exchange and routing key of a delivery.
    let (exchange, key) = bytes.split_at(bytes.len().min(255) / 2);
    let mut deliver = vec![0, 60, 0, 60, 1, b't', 0, 0, 0, 0, 0, 0, 0, 1, 0];
    for text in [exchange, &key[..key.len().min(255)]] {
        deliver.push(u8::try_from(text.len()).unwrap_or(0));
        deliver.extend_from_slice(text);
    }
    let out = guarded(&frame(1, &deliver)).expect("a frame in order");
    again(&out);
    if let Err(error) = parse_frame(&out[..]) {
        panic!("the library can't read what came through: {error:?}");
    }
});
