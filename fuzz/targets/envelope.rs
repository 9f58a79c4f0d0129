//! Messages between coordinator and agents: what opens is sealed as the same bytes again, or at least opens the same.
#![no_main]

use ocopea_protocol::{
    envelope::{self, Message},
    message::{Answer, Request, TaskHint},
    task::TaskSpec,
};

fn open<M: Message + PartialEq + std::fmt::Debug>(bytes: &[u8]) {
    if let Ok(opened) = envelope::open::<M>(bytes) {
        let again = envelope::seal(&opened.message, &opened.trace).expect("what was opened can be sealed");
        assert_eq!(envelope::open::<M>(&again).expect("and opened again"), opened);
    }
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    open::<TaskHint>(bytes);
    open::<Request>(bytes);
    open::<Answer>(bytes);
    open::<TaskSpec>(bytes);
    // The head is the same each time: what matters comes behind it.
    for kind in 1..=4 {
        let mut whole = b"OCPA".to_vec();
        whole.extend_from_slice(&envelope::PROTOCOL_VERSION.to_le_bytes());
        whole.extend_from_slice(&[kind, 0]);
        whole.extend_from_slice(bytes);
        match kind {
            1 => open::<TaskHint>(&whole),
            2 => open::<Request>(&whole),
            3 => open::<Answer>(&whole),
            _ => open::<TaskSpec>(&whole),
        }
    }
});
