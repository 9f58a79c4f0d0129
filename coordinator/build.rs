//! A program of a release has the pages inside, so a new build of them makes a new program. One for development reads them
//! when it is asked, and is built anew only for its own sources.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    if std::env::var("PROFILE").as_deref() == Ok("release") {
        println!("cargo:rerun-if-changed=../web/dist");
    }
}
