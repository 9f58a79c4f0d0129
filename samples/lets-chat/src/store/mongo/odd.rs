//! Settings of every type that BSON knows, one document each: whoever copies this database shows whether it can.

use mongodb::bson::{
    Binary, Bson, DateTime, DbPointer, Decimal128, Document, JavaScriptCodeWithScope, Regex, Timestamp, doc,
    oid::ObjectId, spec::BinarySubtype,
};

use super::Mongo;
use crate::store::Result;

fn bytes(subtype: BinarySubtype, bytes: &[u8]) -> Bson {
    Bson::Binary(Binary { subtype, bytes: bytes.to_vec() })
}

fn regex(pattern: &str, options: &str) -> Option<Bson> {
    Some(Bson::RegularExpression(Regex { pattern: pattern.try_into().ok()?, options: options.try_into().ok()? }))
}

/// The documents, by the name under which a refusal is reported.
fn documents() -> Vec<(&'static str, Document)> {
    let decimal = |text: &str| text.parse::<Decimal128>().map_or(Bson::Null, Bson::Decimal128);
    let id = ObjectId::from_bytes(*b"lets-chat-id");
    let mut all = vec![
        (
            "doubles",
            doc! { "_id": "doubles", "pi": std::f64::consts::PI, "nan": f64::NAN, "infinite": f64::INFINITY,
            "below": f64::NEG_INFINITY, "minusZero": -0.0_f64, "least": f64::from_bits(1) },
        ),
        (
            "strings",
            doc! { "_id": "strings", "empty": "", "nul": "a\0b", "bidi": "שלום \u{202e}abc", "emoji": "👩🏽‍🚀",
            "combining": "e\u{301}", "": "empty key", "ключ": "unicode key", "with space": 1_i32 },
        ),
        (
            "nested",
            doc! { "_id": "nested", "empty": {}, "deep": { "a": { "b": { "c": { "d": [1_i32, [2_i32, [3_i64]]] } } } } },
        ),
        (
            "arrays",
            doc! { "_id": "arrays", "empty": [], "mixed": [1_i32, 2_i64, 3.5_f64, "four", Bson::Null, true, {}] },
        ),
        (
            "binaries",
            doc! { "_id": "binaries",
            "generic": bytes(BinarySubtype::Generic, &[0, 255, 1]), "empty": bytes(BinarySubtype::Generic, &[]),
            "uuid": bytes(BinarySubtype::Uuid, &[7; 16]) },
        ),
        ("binary-md5", doc! { "_id": "binary-md5", "value": bytes(BinarySubtype::Md5, &[9; 16]) }),
        ("binary-function", doc! { "_id": "binary-function", "value": bytes(BinarySubtype::Function, b"f") }),
        ("binary-old", doc! { "_id": "binary-old", "value": bytes(BinarySubtype::BinaryOld, b"old") }),
        ("binary-user", doc! { "_id": "binary-user", "value": bytes(BinarySubtype::UserDefined(0x80), b"own") }),
        (
            "integers",
            doc! { "_id": "integers", "least": i32::MIN, "greatest": i32::MAX, "wideLeast": i64::MIN,
            "wideGreatest": i64::MAX, "same": [1_i32, 1_i64] },
        ),
        (
            "decimals",
            doc! { "_id": "decimals", "cents": decimal("0.10"), "huge": decimal("9.99E+6144"),
            "nan": decimal("NaN"), "infinite": decimal("-Infinity"), "zeros": decimal("1.000") },
        ),
        (
            "dates",
            doc! { "_id": "dates", "epoch": DateTime::from_millis(0), "before": DateTime::from_millis(-1),
            "far": DateTime::from_millis(253_402_300_799_999) },
        ),
        (
            "timestamps",
            doc! { "_id": "timestamps", "at": Timestamp { time: 1_700_000_000, increment: 7 },
            "inner": { "zero": Timestamp { time: 0, increment: 0 } } },
        ),
        ("flags", doc! { "_id": "flags", "yes": true, "no": false, "nothing": Bson::Null }),
        ("ids", doc! { "_id": "ids", "own": id }),
        ("min-and-max", doc! { "_id": "min-and-max", "least": Bson::MinKey, "greatest": Bson::MaxKey }),
        ("undefined", doc! { "_id": "undefined", "value": Bson::Undefined }),
        ("symbol", doc! { "_id": "symbol", "value": Bson::Symbol("sym".into()) }),
        ("script", doc! { "_id": "script", "value": Bson::JavaScriptCode("function () { return 1 }".into()) }),
        (
            "script-with-scope",
            doc! { "_id": "script-with-scope", "value": Bson::JavaScriptCodeWithScope(
            JavaScriptCodeWithScope { code: "return x".into(), scope: doc! { "x": 1_i32 } }) },
        ),
        ("id-int32", doc! { "_id": 4711_i32, "what": "an Int32 as id" }),
        ("id-double", doc! { "_id": 0.5_f64, "what": "a double as id" }),
        ("id-document", doc! { "_id": { "b": 1_i32, "a": [1_i32] }, "what": "a document as id, its keys not sorted" }),
        ("id-binary", doc! { "_id": bytes(BinarySubtype::Uuid, &[3; 16]), "what": "a UUID as id" }),
        ("id-date", doc! { "_id": DateTime::from_millis(1_000), "what": "a date as id" }),
        ("id-null", doc! { "_id": Bson::Null, "what": "null as id" }),
        ("id-flag", doc! { "_id": true, "what": "a flag as id" }),
    ];
    if let Some(pattern) = regex("^(a|b)\\.c$", "imx") {
        all.push(("pattern", doc! { "_id": "pattern", "value": pattern }));
    }
    if let Ok(pointer) = mongodb::bson::deserialize_from_bson::<DbPointer>(Bson::Document(
        doc! { "$dbPointer": { "$ref": "lets-chat.rooms", "$id": id } },
    )) {
        all.push(("pointer", doc! { "_id": "pointer", "value": Bson::DbPointer(pointer) }));
    }
    all
}

impl Mongo {
    /// Writes them one by one; says which the server didn't take (servers of the same protocol differ here).
    pub(super) async fn put_odd_settings(&self) -> Result<Vec<String>> {
        let mut refused = Vec::new();
        for (name, document) in documents() {
            if let Err(error) = self.collection("settings").insert_one(document).await {
                tracing::debug!(%error, "this server doesn't take the setting {name}");
                refused.push(name.to_owned());
            }
        }
        Ok(refused)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_of_bson_is_among_the_settings() {
        let mut types: Vec<u8> = Vec::new();
        fn walk(value: &Bson, types: &mut Vec<u8>) {
            types.push(value.element_type() as u8);
            match value {
                Bson::Document(inner) => inner.iter().for_each(|(_, value)| walk(value, types)),
                Bson::Array(inner) => inner.iter().for_each(|value| walk(value, types)),
                _ => {}
            }
        }
        for (_, document) in documents() {
            walk(&Bson::Document(document), &mut types);
        }
        types.sort_unstable();
        types.dedup();
        let all: Vec<u8> = (0x01..=0x13).chain([0x7f, 0xff]).collect();
        assert_eq!(types, all);
    }
}
