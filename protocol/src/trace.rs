//! What ties together everything that is done for one request: a trace (W3C Trace Context, `traceparent`).
//!
//! A request may bring one; else an operation begins its own, whose id is the operation's. It goes with the answer to every
//! claim, so the lines that coordinators and agents log for an operation carry the same `trace.id`.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::{ids::OperationId, seams::Seams};

/// A position in a trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Trace {
    id: u128,
    parent: u64,
    flags: u8,
}

/// Not a `traceparent`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a traceparent: 00-<32 hexadecimal digits>-<16 hexadecimal digits>-<2 hexadecimal digits> is expected")]
pub struct NoTrace;

impl Trace {
    /// The trace of an operation that nobody brought one for.
    pub fn of(operation: OperationId, seams: &Seams) -> Self {
        Self { id: operation.0.as_u128(), parent: 0, flags: 1 }.next(seams)
    }

    /// The same trace, one step on.
    #[must_use]
    pub fn next(self, seams: &Seams) -> Self {
        let mut bytes = [0; 8];
        seams.entropy.fill(&mut bytes);
        // Zero is no position.
        Self { parent: u64::from_be_bytes(bytes) | 1, ..self }
    }

    /// What ties lines together: 32 hexadecimal digits.
    pub fn id(&self) -> String {
        format!("{:032x}", self.id)
    }
}

impl fmt::Display for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{:032x}-{:016x}-{:02x}", self.id, self.parent, self.flags)
    }
}

impl FromStr for Trace {
    type Err = NoTrace;

    fn from_str(text: &str) -> Result<Self, NoTrace> {
        let hex = |part: Option<&str>, digits: usize| {
            let part = part.filter(|part| {
                part.len() == digits && part.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'a'..=b'f'))
            })?;
            u128::from_str_radix(part, 16).ok()
        };
        let mut parts = text.split('-');
        let version = hex(parts.next(), 2).filter(|version| *version != 0xff);
        let (id, parent, flags) = (hex(parts.next(), 32), hex(parts.next(), 16), hex(parts.next(), 2));
        // Later versions may add parts, this one has none.
        let whole = version != Some(0) || parts.next().is_none();
        match (version, id, parent, flags) {
            (Some(_), Some(id @ 1..), Some(parent @ 1..), Some(flags)) if whole => Ok(Self {
                id,
                parent: u64::try_from(parent).map_err(|_| NoTrace)?,
                flags: u8::try_from(flags).map_err(|_| NoTrace)?,
            }),
            _ => Err(NoTrace),
        }
    }
}

impl From<Trace> for String {
    fn from(trace: Trace) -> Self {
        trace.to_string()
    }
}

impl TryFrom<String> for Trace {
    type Error = NoTrace;

    fn try_from(text: String) -> Result<Self, NoTrace> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_standard_calls_valid_is_taken_and_nothing_else() {
        let text = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let trace: Trace = text.parse().unwrap();
        assert_eq!(trace.to_string(), text);
        assert_eq!(trace.id(), "0af7651916cd43dd8448eb211c80319c");
        assert!(format!("01{}-later", &text[2..]).parse::<Trace>().is_ok());
        for wrong in [
            "",
            "00",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-x",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-+1",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
            "00 0af7651916cd43dd8448eb211c80319c b7ad6b7169203331 01",
        ] {
            assert_eq!(wrong.parse::<Trace>(), Err(NoTrace), "{wrong:?}");
        }
    }

    #[test]
    fn an_operations_own_trace_is_called_as_the_operation_is() {
        let seams = Seams::real(Default::default());
        let operation = OperationId::generate(&seams);
        let trace = Trace::of(operation, &seams);
        assert_eq!(trace.id(), operation.0.simple().to_string());
        assert_eq!(trace.next(&seams).id(), trace.id());
        assert_ne!(trace.next(&seams), trace);
    }
}
