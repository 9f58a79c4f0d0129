//! A seeded history of a company's chat: the same seed and sizes give the same history, byte for byte.
//!
//! One room, [`INCIDENT`], holds what version 1.4.1 stumbles over: a runbook whose twelve steps were posted while the
//! sender's clock was stepped back, several within one millisecond. Everywhere else time only goes forward.

use std::collections::VecDeque;

use super::{chance::Chance, files, words};
use crate::{
    model::{Body, Handle, NewRoom, Quote, RoomKind, Slug, Title},
    store::{LoadMark, SeedMessage, SeedRoom, SeedUpload},
    world::Millis,
};

/// The room whose messages 1.4.1 shows in wrong order.
pub const INCIDENT: &str = "incident-4711";

/// The history covers so much time.
const SPAN: Millis = 90 * 24 * 3600 * 1000;

/// Messages among which an answer picks what it answers to.
const RECENT: usize = 12;

/// The sizes of a history.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sizes {
    /// Seed.
    pub seed: u64,
    /// All messages, those of the incident included.
    pub messages: usize,
    /// Accounts.
    pub users: usize,
    /// Rooms, that of the incident included.
    pub rooms: usize,
    /// Uploads.
    pub uploads: usize,
    /// The time of the last message.
    pub until: Millis,
}

impl Sizes {
    /// What a finished load of this history is marked with.
    pub fn mark(&self) -> LoadMark {
        let wide = |value: usize| i64::try_from(value).unwrap_or(i64::MAX);
        LoadMark {
            seed: self.seed.cast_signed(),
            messages: wide(self.messages),
            users: wide(self.users),
            rooms: wide(self.rooms),
            uploads: wide(self.uploads),
        }
    }
}

/// Somebody.
#[derive(Debug, Clone)]
pub struct Person {
    /// See [`Handle`].
    pub handle: Handle,
    /// The whole name.
    pub display: Title,
}

struct RoomState {
    members: Vec<usize>,
    seq: i64,
    recent: VecDeque<Quote>,
}

/// The history; messages come one after the other.
pub struct History {
    sizes: Sizes,
    people: Vec<Person>,
    rooms: Vec<SeedRoom>,
    states: Vec<RoomState>,
    chance: Chance,
    next: usize,
    uploads: usize,
    burst: Burst,
}

#[derive(Default)]
struct Burst {
    room: usize,
    left: usize,
    people: Vec<usize>,
}

fn number(value: usize) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

impl History {
    /// Sizes are raised to the least that makes sense: 2 users, 3 rooms, the incident's messages.
    pub fn new(mut sizes: Sizes) -> Self {
        sizes.users = sizes.users.max(2);
        sizes.rooms = sizes.rooms.max(3);
        sizes.messages = sizes.messages.max(INCIDENT_SCRIPT.len());
        sizes.uploads = sizes.uploads.min(sizes.messages - INCIDENT_SCRIPT.len());
        let people: Vec<Person> = (0..sizes.users).map(|index| person(sizes.seed, index)).collect();
        let mut rooms = Vec::new();
        let mut states = Vec::new();
        for index in 0..sizes.rooms {
            let room = room(&sizes, index);
            let members = room.members.iter().map(|id| usize::try_from(*id - 1).unwrap_or_default()).collect();
            rooms.push(room);
            states.push(RoomState { members, seq: 0, recent: VecDeque::new() });
        }
        let chance = Chance::new(sizes.seed, "messages", 0);
        Self { sizes, people, rooms, states, chance, next: 0, uploads: 0, burst: Burst::default() }
    }

    /// The sizes that it really has.
    pub fn sizes(&self) -> Sizes {
        self.sizes
    }

    /// Everybody; the account's number is the place here plus one.
    pub fn people(&self) -> &[Person] {
        &self.people
    }

    /// All rooms.
    pub fn rooms(&self) -> &[SeedRoom] {
        &self.rooms
    }

    /// The beginning of the history.
    pub fn began(&self) -> Millis {
        self.sizes.until - SPAN
    }

    /// At most `most` further messages, and the uploads that they bring.
    pub fn batch(&mut self, most: usize) -> (Vec<SeedMessage>, Vec<SeedUpload>) {
        let (mut messages, mut uploads) = (Vec::with_capacity(most), Vec::new());
        while messages.len() < most && self.next < self.sizes.messages {
            let index = self.next;
            self.next += 1;
            let ordinary = self.sizes.messages - INCIDENT_SCRIPT.len();
            if index < ordinary {
                messages.push(self.ordinary(index, ordinary, &mut uploads));
            } else {
                messages.push(self.incident(index, index - ordinary));
            }
        }
        (messages, uploads)
    }

    fn ordinary(&mut self, index: usize, of: usize, uploads: &mut Vec<SeedUpload>) -> SeedMessage {
        if self.burst.left == 0 {
            self.burst = self.new_burst();
        }
        self.burst.left -= 1;
        let room = self.burst.room;
        let author = self.burst.people[self.chance.below(self.burst.people.len())];
        // An hour before the end belongs to the incident. Each message has a slice of time of its own.
        let slice = (SPAN - 3_600_000) / number(of).max(1);
        let within = self.chance.below(usize::try_from(slice).unwrap_or(1) * 9 / 10);
        let at = self.began() + slice * number(index) + number(within);
        let body = words::speech(&mut self.chance);
        let state = &self.states[room];
        let reply = if !state.recent.is_empty() && self.chance.permille(150) {
            let place = self.chance.below(state.recent.len());
            state.recent.get(place).cloned()
        } else {
            None
        };
        let mut message = self.message(index, room, author, at, body, reply);
        // Uploads are spread evenly: the u-th comes with the message at which its share of all is reached.
        if self.uploads < self.sizes.uploads && index * self.sizes.uploads >= self.uploads * of {
            let (upload, bytes) = files::upload(self.sizes.seed, self.uploads);
            self.uploads += 1;
            message.upload = Some(upload.clone());
            uploads.push(SeedUpload { upload, bytes, by: message.author, room: message.room.clone(), at });
        }
        message
    }

    /// Some people talk in one room for a while. Rooms that come first are busier (Zipf).
    fn new_burst(&mut self) -> Burst {
        let open = self.rooms.len() - 1;
        let weight = |room: usize| 1_000_000 / (room + 1);
        let mut draw = self.chance.below((0..open).map(weight).sum());
        let mut room = 0;
        while draw >= weight(room) {
            draw -= weight(room);
            room += 1;
        }
        let members = &self.states[room].members;
        let people = (0..self.chance.between(2, 5)).map(|_| members[self.chance.below(members.len())]).collect();
        Burst { room, left: self.chance.between(2, 20), people }
    }

    fn incident(&mut self, index: usize, line: usize) -> SeedMessage {
        let (who, seconds, millis, answers, text) = INCIDENT_SCRIPT[line];
        let room = self.rooms.len() - 1;
        let author = who % self.people.len();
        let at = self.sizes.until - 1_800_000 + seconds * 1000 + millis;
        let reply = answers.and_then(|back| {
            let recent = &self.states[room].recent;
            recent.len().checked_sub(back).and_then(|place| recent.get(place).cloned())
        });
        self.message(index, room, author, at, text.to_owned(), reply)
    }

    fn message(
        &mut self,
        index: usize,
        room: usize,
        author: usize,
        at: Millis,
        body: String,
        reply: Option<Quote>,
    ) -> SeedMessage {
        let n = number(index) + 1;
        let state = &mut self.states[room];
        state.seq += 1;
        if state.recent.len() == RECENT {
            state.recent.pop_front();
        }
        let excerpt = Body::stored(body.as_str()).excerpt();
        state.recent.push_back(Quote { n, author: self.people[author].handle.clone(), excerpt });
        SeedMessage {
            n,
            seq: state.seq,
            room: (self.rooms[room].id, self.rooms[room].new.slug.clone()),
            author: number(author) + 1,
            at,
            body,
            reply,
            upload: None,
        }
    }
}

/// Names are plain ASCII: `zoe.k2`. The first is always `dana`.
fn person(seed: u64, index: usize) -> Person {
    let mut chance = Chance::new(seed, "person", index as u64);
    let first = words::FIRST[index % words::FIRST.len()];
    let last = if index == 0 { words::LAST[0] } else { chance.pick(&words::LAST) };
    let plain = |text: &str| text.to_lowercase().chars().filter(char::is_ascii_alphanumeric).collect::<String>();
    let mut name = plain(first);
    if index >= words::FIRST.len() {
        name = format!("{name}.{}{}", plain(last), index / words::FIRST.len());
    }
    Person { handle: Handle::stored(name), display: Title::stored(format!("{first} {last}")) }
}

fn room(sizes: &Sizes, index: usize) -> SeedRoom {
    let mut chance = Chance::new(sizes.seed, "room", index as u64);
    let everybody = |_: &mut Chance| (1..=number(sizes.users)).collect::<Vec<i64>>();
    let (slug, title, topic, kind, members) = if index + 1 == sizes.rooms {
        let title = "Incident 4711".to_owned();
        (
            INCIDENT.to_owned(),
            title,
            "Checkout is down: runbook RB-12".to_owned(),
            RoomKind::Public,
            everybody(&mut chance),
        )
    } else if let Some((slug, title, topic)) = words::ROOMS.get(index) {
        ((*slug).to_owned(), (*title).to_owned(), (*topic).to_owned(), RoomKind::Public, everybody(&mut chance))
    } else {
        let members = (1..=number(sizes.users)).filter(|id| *id <= 2 || chance.permille(300)).collect();
        let nth = index - words::ROOMS.len() + 1;
        (format!("project-{nth}"), format!("Project {nth}"), "Members only".to_owned(), RoomKind::Private, members)
    };
    let new = NewRoom { slug: Slug::stored(slug), title: Title::stored(title), topic, kind, at: sizes.until - SPAN };
    SeedRoom { id: number(index) + 1, new, members }
}

/// Who, the second and millisecond of the sender's clock, how far back the answer goes, what.
/// After step 6 the sender's clock is set back by ninety seconds.
#[rustfmt::skip]
const INCIDENT_SCRIPT: [(usize, i64, i64, Option<usize>, &str); 30] = [
    (0, 0, 112, None, "Checkout answers 503 for about a third of the requests since 14:02. I'm taking incident 4711."),
    (1, 19, 340, None, "Confirmed from here. The payment queue is at 40 000 and growing."),
    (2, 41, 905, None, "Do we have a runbook for this? 🔥"),
    (0, 58, 211, Some(1), "RB-12. I'll go through it step by step, please don't touch anything meanwhile."),
    (0, 301, 500, None, "Step 1 of 12: stop the nightly import."),
    (0, 301, 500, None, "Step 2 of 12: take web-3 out of the load balancer."),
    (0, 301, 500, None, "Step 3 of 12: switch checkout to read-only."),
    (1, 302, 17, Some(1), "Read-only is on. 👍"),
    (0, 304, 250, None, "Step 4 of 12: let the queue drain below 1 000."),
    (0, 304, 250, None, "Step 5 of 12: restart the payment workers, one after the other."),
    (0, 306, 730, None, "Step 6 of 12: correct the clock of web-3 (it runs 90 s ahead)."),
    (0, 218, 118, None, "Step 7 of 12: clock is right again. Compare the last order numbers."),
    (1, 220, 480, Some(1), "Order numbers agree: 884 213 on both sides."),
    (0, 222, 640, None, "Step 8 of 12: switch checkout back to read-write."),
    (0, 222, 640, None, "Step 9 of 12: put web-3 back into the load balancer."),
    (2, 224, 305, Some(2), "Orders are coming in. 🎉"),
    (0, 226, 900, None, "Step 10 of 12: replay the parked payments."),
    (1, 229, 77, Some(1), "412 parked payments replayed, none twice."),
    (0, 231, 415, None, "Step 11 of 12: start the nightly import."),
    (0, 233, 802, None, "Step 12 of 12: write it down. I'll do that now."),
    (3, 420, 130, None, "Was any money taken twice?"),
    (0, 437, 610, Some(1), "No. Checked by hand against the bank's list."),
    (4, 512, 48, None, "Why did nobody see that clock earlier?"),
    (1, 540, 260, Some(1), "It was on the dashboard, and nobody looks at that panel. I'll make an alert of it."),
    (2, 601, 533, None, "Customers were told, status page is green. ✅"),
    (0, 655, 990, None, "Thanks all. Closing 4711 when the report is reviewed."),
    (5, 902, 404, None, "I read the steps here in another order than in the report: 7 to 12 come before 1 to 6?"),
    (0, 951, 216, Some(1), "They were posted in order. Let me save this chat before anybody tidies it up."),
    (6, 1004, 71, None, "Same here, only in this room."),
    (0, 1063, 845, Some(1), "Then it's the data. bug=4711, I'll open one."),
];

#[cfg(test)]
mod tests {
    use std::collections::{HashMap, HashSet};

    use super::*;
    use crate::model::MAX_BODY;

    fn sizes() -> Sizes {
        Sizes { seed: 7, messages: 5_000, users: 90, rooms: 18, uploads: 40, until: 1_793_610_000_000 }
    }

    fn all(sizes: Sizes, batch: usize) -> (Vec<SeedMessage>, Vec<SeedUpload>) {
        let mut history = History::new(sizes);
        let (mut messages, mut uploads) = (Vec::new(), Vec::new());
        loop {
            let (more, files) = history.batch(batch);
            if more.is_empty() {
                return (messages, uploads);
            }
            messages.extend(more);
            uploads.extend(files);
        }
    }

    #[test]
    fn the_same_seed_gives_the_same_history_whatever_the_batches() {
        let (first, second) = (all(sizes(), 5_000), all(sizes(), 333));
        assert_eq!(format!("{:?}", first.0), format!("{:?}", second.0));
        assert_eq!(format!("{:?}", first.1), format!("{:?}", second.1));
        let other = all(Sizes { seed: 8, ..sizes() }, 5_000);
        assert_ne!(format!("{:?}", first.0), format!("{:?}", other.0));
    }

    #[test]
    fn only_the_incidents_room_has_what_the_bug_needs() {
        let (messages, _) = all(sizes(), 1_000);
        let mut last: HashMap<String, i64> = HashMap::new();
        let mut triggers: HashMap<String, (usize, usize)> = HashMap::new();
        for message in &messages {
            let room = message.room.1.to_string();
            let before = last.insert(room.clone(), message.at).unwrap_or(i64::MIN);
            let counted = triggers.entry(room).or_default();
            counted.0 += usize::from(message.at < before);
            counted.1 += usize::from(message.at == before);
        }
        assert!(triggers.remove(INCIDENT).is_some_and(|(back, same)| back >= 1 && same >= 3));
        assert!(triggers.len() > 10 && triggers.values().all(|counts| *counts == (0, 0)), "{triggers:?}");
    }

    #[test]
    fn a_history_is_as_large_as_asked_for_and_holds_together() {
        let (messages, uploads) = all(sizes(), 777);
        assert_eq!((messages.len(), uploads.len()), (5_000, 40));
        let history = History::new(sizes());
        let names: HashSet<&str> = history.people().iter().map(|person| person.handle.as_str()).collect();
        assert_eq!(names.len(), 90);
        assert!(history.people().iter().all(|person| Handle::parse(person.handle.as_str()).is_ok()));
        assert_eq!(history.people()[0].handle.as_str(), "dana");
        let ids: HashSet<_> = uploads.iter().map(|seed| seed.upload.id).collect();
        assert_eq!(ids.len(), 40);
        let mut seqs: HashMap<&str, i64> = HashMap::new();
        let mut rooms_of: HashMap<i64, &str> = HashMap::new();
        for (place, message) in messages.iter().enumerate() {
            assert_eq!(message.n, place as i64 + 1);
            assert!(Body::parse(&message.body).is_ok_and(|body| body.as_str() == message.body), "{:?}", message.body);
            assert!(message.body.chars().count() <= MAX_BODY && message.author <= 90);
            let room = message.room.1.as_str();
            let seq = seqs.entry(room).or_default();
            *seq += 1;
            assert_eq!(message.seq, *seq);
            if let Some(reply) = &message.reply {
                assert_eq!(rooms_of.get(&reply.n), Some(&room), "an answer stays in its room");
            }
            rooms_of.insert(message.n, room);
        }
        assert!(messages.iter().filter(|message| message.reply.is_some()).count() > 300);
        assert!(messages.iter().any(|message| message.body.chars().count() > 1_000));
    }
}
