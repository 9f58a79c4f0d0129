//! Round trips of random messages, and random bytes. Seeded: a failure names its seed, and comes again with it.

use ocopea_protocol::{
    envelope::{open, seal},
    failure::TaskFailure,
    ids::{InstanceId, OperationId, TaskId},
    message::{Answer, Request, TaskHint},
    task::{Claimed, HolderState, Outcome, Progress, TaskOutput},
    time::Timestamp,
};
use uuid::Uuid;

use crate::{Any, is_read_back, sealed, values};

struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    /// Numbers of every length: each of the encoding's forms is met.
    fn number(&mut self) -> u64 {
        let bits = self.below(65);
        if bits == 0 { 0 } else { self.next() >> (64 - bits) }
    }

    fn id(&mut self) -> Uuid {
        Uuid::from_u64_pair(self.next(), self.next())
    }

    fn text(&mut self) -> String {
        let most = [0, 3, 40, 251, 5000][self.below(5) as usize];
        (0..self.below(most + 1)).map(|_| char::from_u32(self.below(0x11_0000) as u32).unwrap_or('\0')).collect()
    }

    fn claimed(&mut self) -> Claimed {
        Claimed {
            task: TaskId(self.id()),
            operation: OperationId(self.id()),
            attempt: self.number() as u32,
            instance: InstanceId(self.id()),
        }
    }

    fn request(&mut self) -> Request {
        match self.below(5) {
            0 => Request::Claim { task: TaskId(self.id()), instance: InstanceId(self.id()) },
            1 => Request::Heartbeat {
                claimed: self.claimed(),
                progress: Progress {
                    phase: self.text(),
                    bytes: self.number(),
                    of_bytes: self.number(),
                    new_bytes: self.number(),
                    items: self.number(),
                },
                holder: match self.below(3) {
                    0 => None,
                    1 => Some(HolderState::Prepared),
                    _ => Some(HolderState::Open { snapshot: self.text(), at: Timestamp(self.number() as i64) }),
                },
            },
            2 => Request::Finish {
                claimed: self.claimed(),
                outcome: Outcome::Failed(TaskFailure::retryable(&self.text(), self.text(), self.text())),
            },
            3 => {
                let notes = (0..self.below(20)).map(|_| self.text()).collect();
                let url = (self.below(2) == 0).then(|| self.text());
                let outcome = Outcome::Succeeded(Box::new(TaskOutput::Ready { url, notes }));
                Request::Finish { claimed: self.claimed(), outcome }
            }
            _ => Request::Poll {
                instance: InstanceId(self.id()),
                most: self.number() as u32,
                turn: self.number(),
                mark: self.number(),
            },
        }
    }

    fn answer(&mut self) -> Answer {
        let kinds = values::kinds();
        match self.below(3) {
            0 => Answer::Refused { why: self.text() },
            1 => Answer::TryLater { why: self.text() },
            _ => Answer::Tasks(
                (0..self.below(50))
                    .map(|_| TaskHint {
                        task: TaskId(self.id()),
                        kind: kinds[self.below(kinds.len() as u64) as usize],
                        least_version: self.number() as u16,
                    })
                    .collect(),
            ),
        }
    }
}

#[test]
fn random_messages_survive_the_way() {
    for seed in 0..4000u64 {
        let mut dice = Dice(seed);
        let message = if dice.below(2) == 0 {
            Any::Request(Box::new(dice.request()))
        } else {
            Any::Answer(Box::new(dice.answer()))
        };
        let trace: String = dice.text().chars().filter(char::is_ascii).take(255).collect();
        println!("seed {seed}");
        let bytes = sealed(&message, &trace);
        is_read_back(&message, &bytes, &trace);
    }
}

/// Bytes that begin as ours and go on at random, and true messages with a random part overwritten: refused or read,
/// never a panic, and what is read is written again in no more bytes than it took.
#[test]
fn random_bytes_are_refused_or_mean_what_they_say() {
    let all: Vec<_> = values::all().into_iter().map(|(_, message)| sealed(&message, "")).collect();
    for seed in 0..20_000u64 {
        let mut dice = Dice(seed ^ 0x5eed_0000);
        let mut bytes = if seed % 2 == 0 {
            let mut bytes = b"OCPA\x02\x00".to_vec();
            bytes.push(1 + dice.below(4) as u8);
            bytes.push(0);
            let length = dice.below(200);
            bytes.extend((0..length).map(|_| dice.next() as u8));
            bytes
        } else {
            all[dice.below(all.len() as u64) as usize].clone()
        };
        if seed % 2 == 1 {
            let at = 8 + dice.below((bytes.len() - 8) as u64) as usize;
            let most = bytes.len() - at;
            for byte in bytes.iter_mut().skip(at).take(1 + dice.below(8.min(most as u64)) as usize) {
                *byte = dice.next() as u8;
            }
        }
        println!("seed {seed}");
        if let Ok(opened) = open::<TaskHint>(&bytes) {
            assert!(seal(&opened.message, &opened.trace).unwrap().len() <= bytes.len());
        }
        if let Ok(opened) = open::<Request>(&bytes) {
            assert!(seal(&opened.message, &opened.trace).unwrap().len() <= bytes.len());
        }
        if let Ok(opened) = open::<Answer>(&bytes) {
            assert!(seal(&opened.message, &opened.trace).unwrap().len() <= bytes.len());
        }
    }
}
