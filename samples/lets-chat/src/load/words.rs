//! What people say, by chance.

use super::chance::Chance;

pub(super) const FIRST: [&str; 40] = [
    "Dana", "Timo", "Aiko", "Bilal", "Chiara", "Dmitri", "Elif", "Farah", "Goran", "Hana", "Ines", "Jonas", "Kenji",
    "Leila", "Mateo", "Nadia", "Oskar", "Priya", "Quentin", "Rosa", "Samir", "Tereza", "Ursula", "Viktor", "Wanjiru",
    "Xenia", "Yusuf", "Zoë", "Anouk", "Björn", "Carmen", "Dilan", "Emeka", "Fiona", "Gabriel", "Hülya", "Ivo", "Júlia",
    "Kofi", "Lars",
];

pub(super) const LAST: [&str; 32] = [
    "Kovács",
    "Lehtinen",
    "Tanaka",
    "Haddad",
    "Ricci",
    "Volkov",
    "Yılmaz",
    "Nasser",
    "Petrović",
    "Novak",
    "Moreau",
    "Berg",
    "Sato",
    "Karimi",
    "García",
    "Rahman",
    "Lindqvist",
    "Sharma",
    "Dubois",
    "Silva",
    "Aziz",
    "Dvořák",
    "Keller",
    "Ivanov",
    "Mwangi",
    "Papadopoulou",
    "Demir",
    "Okafor",
    "O'Brien",
    "Costa",
    "Mensah",
    "Andersen",
];

/// Rooms: slug, title, topic.
pub(super) const ROOMS: [(&str, &str, &str); 14] = [
    ("lobby", "Lobby", "Everybody is here"),
    ("general", "General", "What concerns all of us"),
    ("engineering", "Engineering", "How it is built"),
    ("support", "Support", "Who is stuck, and on what"),
    ("releases", "Releases", "What goes out, and when"),
    ("design", "Design", "How it looks and feels"),
    ("databases", "Databases", "Plans, locks and indexes"),
    ("on-call", "On call", "Who is awake tonight"),
    ("lunch", "Lunch", "12:15, downstairs"),
    ("music", "Music", "What plays while we build"),
    ("bikes", "Bikes", "Two wheels, no motor"),
    ("books", "Books", "Read anything good?"),
    ("languages", "Languages", "Γειά σου, 你好, مرحبا, नमस्ते"),
    ("random", "Random", "Everything else"),
];

const OPENERS: [&str; 16] = [
    "Morning!",
    "Quick question:",
    "Heads up:",
    "So,",
    "FYI,",
    "Hm.",
    "Good news:",
    "Does anybody know whether",
    "I just saw that",
    "As far as I can tell",
    "For the record:",
    "Yes,",
    "No,",
    "Agreed,",
    "Careful:",
    "By the way,",
];

const WHO: [&str; 20] = [
    "the build",
    "the staging cluster",
    "our biggest customer",
    "the new index",
    "the migration",
    "the login page",
    "the nightly job",
    "the parser",
    "the cache",
    "the printer on the third floor",
    "the release branch",
    "the mobile client",
    "the test suite",
    "the coffee machine",
    "the invoice export",
    "the search",
    "the queue",
    "the load balancer",
    "the old importer",
    "the dashboard",
];

const DOES: [&str; 20] = [
    "works again",
    "takes twice as long as yesterday",
    "fails once in a hundred runs",
    "needs a second pair of eyes",
    "is waiting for a review",
    "was rolled back at noon",
    "has never been faster",
    "eats all the memory",
    "is finally documented",
    "shows the wrong time zone",
    "is blocked by a lock",
    "passed on the third try",
    "returns 502 for some of us",
    "is ready for Thursday",
    "lost its certificate",
    "sorts umlauts last",
    "counts deleted rows",
    "ignores the daylight saving change",
    "can be switched off",
    "went out to ten percent",
];

const TAILS: [&str; 20] = [
    "since this morning",
    "but only on Fridays",
    "if nobody objects",
    "and nobody knows why",
    "as far as I can see",
    "for the second time this week",
    "because of the new driver",
    "after the last restart",
    "on both clusters",
    "with more than a thousand users",
    "when the disk is nearly full",
    "and that's fine",
    "so please don't deploy yet",
    "I'll write it down",
    "let's talk at eleven",
    "see the attached log",
    "the numbers are in the wiki",
    "I can reproduce it now",
    "could somebody confirm",
    "thanks to everybody who helped",
];

const EMOJI: [&str; 20] = [
    "🙂",
    "👍",
    "🎉",
    "😅",
    "🤔",
    "🚀",
    "❤️",
    "☕",
    "🐛",
    "🔥",
    "👀",
    "🙏",
    "✅",
    "👩🏽‍💻",
    "🏳️‍🌈",
    "🇫🇮",
    "🥐",
    "🌧️",
    "🤷‍♂️",
    "📎",
];

const SHORT: [&str; 24] = [
    "ok",
    "thanks!",
    "+1",
    "on it",
    "done",
    "looks good to me",
    "same here",
    "not yet",
    "which one?",
    "tomorrow then",
    "ship it",
    "oh no",
    "nice",
    "link?",
    "who is on call?",
    "can't reproduce",
    "works for me",
    "back in 10",
    "hello?",
    "never mind, found it",
    "yes please",
    "that was me, sorry",
    "let me look",
    "🎉🎉🎉",
];

const OTHER: [&str; 14] = [
    "ありがとうございます、確認しました。",
    "Спасибо, посмотрю после обеда.",
    "شكرا، سأتحقق من ذلك الآن",
    "谢谢，已经修好了。",
    "Γίνεται, το βλέπω αύριο.",
    "धन्यवाद, अब चल रहा है।",
    "Dziękuję, już działa: zażółć gęślą jaźń.",
    "תודה, בודק עכשיו",
    "Grüße aus Köln, schöne Übung!",
    "Hyvää huomenta, kahvia?",
    "e\u{301}te\u{301} or été: same word, other bytes",
    "<script>alert('not here')</script> & \"quotes\" 'n' such",
    "C:\\temp\\new\t<- a tab, and a \\N that isn't null",
    "https://example.org/a?b=1&c=%C3%A4#frag",
];

const CODE: [&str; 5] = [
    "```\nselect room, count(*)\nfrom messages\ngroup by room\norder by 2 desc;\n```",
    "```\n$ kubectl get pods\nNAME                        READY   STATUS    RESTARTS\nlets-chat-7c9d5b6f4-x2x8p   1/1     Running   0\n```",
    "```\nfn main() {\n    let answer: u32 = 6 * 7;\n    assert_eq!(answer, 42);\n}\n```",
    "```\nERROR 2026-09-14T03:12:44Z pool: timed out after 3000 ms\n    at acquire (pool.rs:211)\n    at handle (rooms.rs:88)\n```",
    "```\n{\"kind\":\"alert\",\"value\":0.97,\"labels\":[\"disk\",\"b-2\"],\"note\":null}\n```",
];

fn sentence(chance: &mut Chance, text: &mut String) {
    let opener = if chance.permille(450) { chance.pick(&OPENERS) } else { "" };
    let who = chance.pick(&WHO);
    if opener.is_empty() || opener.ends_with(['!', '.']) {
        // The first letters are plain ASCII.
        text.push_str(opener);
        text.push_str(if opener.is_empty() { "" } else { " " });
        text.push_str(&who[..1].to_ascii_uppercase());
        text.push_str(&who[1..]);
    } else {
        text.push_str(opener);
        text.push(' ');
        text.push_str(who);
    }
    text.push(' ');
    text.push_str(chance.pick(&DOES));
    if chance.permille(700) {
        text.push_str(", ");
        text.push_str(chance.pick(&TAILS));
    }
    text.push_str(chance.pick(&[".", ".", ".", "!", "?", " …"]));
}

/// Something to say: mostly a sentence or two, at times a word, now and then a page.
pub(super) fn speech(chance: &mut Chance) -> String {
    let mut text = String::new();
    match chance.below(1000) {
        0..=179 => text.push_str(chance.pick(&SHORT)),
        180..=229 => text.push_str(chance.pick(&OTHER)),
        230..=249 => {
            sentence(chance, &mut text);
            text.push('\n');
            text.push_str(chance.pick(&CODE));
        }
        250..=257 => {
            let length = chance.between(800, 3_600);
            while text.len() < length {
                sentence(chance, &mut text);
                text.push_str(if chance.permille(250) { "\n\n" } else { " " });
            }
        }
        _ => {
            for _ in 0..chance.between(1, 3) {
                sentence(chance, &mut text);
                text.push(' ');
            }
        }
    }
    if chance.permille(220) {
        text.truncate(text.trim_end().len());
        text.push(' ');
        text.push_str(chance.pick(&EMOJI));
    }
    text.trim().to_owned()
}
