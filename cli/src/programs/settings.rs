//! Settings of long-running programs: from flags, else the environment, else a file, else what is usual. Whatever is wrong
//! with them is said at once, each with where it stands.

use std::{collections::BTreeMap, marker::PhantomData, path::PathBuf};

use clap::{Arg, ArgMatches, Args, Command, FromArgMatches};
use figment::{
    Figment,
    providers::{Format, Toml},
    value::Value,
};

use crate::client::Failure;

/// The longest file of settings, in bytes.
const LONGEST: u64 = 1024 * 1024;
/// What a name in the environment begins with.
const PREFIX: &str = "OCOPEA_";

/// Something that can be set.
#[derive(Clone, Copy)]
pub struct Setting {
    /// `catalog-url`: so in the file, `--catalog-url` as a flag, `OCOPEA_CATALOG_URL` in the environment.
    pub name: &'static str,
    /// What its value is: `FILE`, `HOST:PORT`; empty for what is on or off.
    pub value: &'static str,
    /// For people.
    pub help: &'static str,
    /// What is usual.
    pub usual: Option<&'static str>,
}

/// A program with settings.
pub trait Program {
    /// All of them.
    const SETTINGS: &'static [Setting];
}

/// The flags that were given.
pub struct Given<P> {
    config: Option<PathBuf>,
    flags: BTreeMap<&'static str, String>,
    program: PhantomData<P>,
}

impl<P: Program> Given<P> {
    /// As if these flags had been typed.
    pub fn typed(flags: impl IntoIterator<Item = (&'static str, Option<String>)>) -> Self {
        let flags = flags.into_iter().filter_map(|(name, value)| Some((name, value?))).collect();
        Self { config: None, flags, program: PhantomData }
    }
}

impl<P> std::fmt::Debug for Given<P> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // A value may be a token.
        f.debug_struct("Given").field("config", &self.config).finish_non_exhaustive()
    }
}

impl<P: Program> Args for Given<P> {
    fn augment_args(command: Command) -> Command {
        let config = Arg::new("config").long("config").value_name("FILE").value_parser(clap::value_parser!(PathBuf));
        let mut command =
            command.arg(config.help("A file with settings (TOML): NAME = VALUE, names as those of the flags"));
        for setting in P::SETTINGS {
            let mut arg = Arg::new(setting.name).long(setting.name);
            let mut help = setting.help.to_owned();
            if setting.value.is_empty() {
                arg = arg.action(clap::ArgAction::SetTrue);
            } else {
                arg = arg.value_name(setting.value);
                if let Some(usual) = setting.usual {
                    help.push_str(&format!(" [default: {usual}]"));
                }
            }
            command = command.arg(arg.help(help));
        }
        command
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl<P: Program> FromArgMatches for Given<P> {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut flags = BTreeMap::new();
        for setting in P::SETTINGS {
            if setting.value.is_empty() {
                if matches.get_flag(setting.name) {
                    flags.insert(setting.name, "true".to_owned());
                }
            } else if let Some(value) = matches.get_one::<String>(setting.name) {
                flags.insert(setting.name, value.clone());
            }
        }
        Ok(Self { config: matches.get_one("config").cloned(), flags, program: PhantomData })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// Settings that were found, and what is wrong with them.
#[derive(Debug, Default)]
pub struct Values {
    found: BTreeMap<&'static str, Found>,
    problems: Vec<String>,
}

struct Found {
    text: String,
    place: String,
}

impl std::fmt::Debug for Found {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.place)
    }
}

fn environment_name(name: &str) -> String {
    format!("{PREFIX}{}", name.replace('-', "_").to_ascii_uppercase())
}

/// As in the file: text, numbers, true and false.
fn text_of(value: &Value) -> Option<String> {
    match value {
        Value::String(_, text) => Some(text.clone()),
        Value::Char(_, c) => Some(c.to_string()),
        Value::Bool(_, on) => Some(on.to_string()),
        Value::Num(_, number) => match (number.to_u128(), number.to_i128()) {
            (Some(number), _) => Some(number.to_string()),
            (_, Some(number)) => Some(number.to_string()),
            _ => number.to_f64().map(|number| number.to_string()),
        },
        _ => None,
    }
}

/// The known name that is meant by a wrong one, if one is near.
fn meant<P: Program>(wrong: &str) -> Option<&'static str> {
    let plain = |name: &str| name.replace(['_', '.'], "-").to_ascii_lowercase();
    let near = |name: &str| {
        let (a, b) = (plain(wrong), name.to_owned());
        a == b || (a.len() > 4 && (b.contains(&a) || a.contains(&b)))
    };
    P::SETTINGS.iter().map(|setting| setting.name).find(|name| near(name))
}

impl<P: Program> Given<P> {
    /// Looks everywhere.
    pub fn collect(self) -> Values {
        let file = self.config.as_ref().map(|path| {
            let shown = path.display();
            let text = std::fs::metadata(path).and_then(|about| {
                if about.len() > LONGEST {
                    return Err(std::io::Error::other(format!("it is longer than {LONGEST} bytes")));
                }
                std::fs::read_to_string(path)
            });
            (shown.to_string(), text.map_err(|error| format!("{shown} can't be read: {error}")))
        });
        self.collect_from(file, |name| std::env::var(name).ok())
    }

    fn collect_from(
        self,
        file: Option<(String, Result<String, String>)>,
        environment: impl Fn(&str) -> Option<String>,
    ) -> Values {
        let mut values = Values::default();
        let mut stated = BTreeMap::new();
        match file {
            Some((path, Ok(text))) => match Figment::from(Toml::string(&text)).extract::<BTreeMap<String, Value>>() {
                Ok(read) => {
                    for (name, value) in read {
                        let place = format!("{path}: {name}");
                        match P::SETTINGS.iter().find(|setting| setting.name == name) {
                            None => values.problems.push(match meant::<P>(&name) {
                                Some(meant) => format!("{place}: there is no such setting; {meant} may be meant"),
                                None => format!("{place}: there is no such setting"),
                            }),
                            Some(setting) => match text_of(&value) {
                                Some(text) => drop(stated.insert(setting.name, Found { text, place })),
                                None => values
                                    .problems
                                    .push(format!("{place}: a text, a number, true or false is expected")),
                            },
                        }
                    }
                }
                Err(error) => values.problems.push(format!("{path} is no TOML file: {error}")),
            },
            Some((_, Err(why))) => values.problems.push(why),
            None => {}
        }
        let mut flags = self.flags;
        for setting in P::SETTINGS {
            let variable = environment_name(setting.name);
            let found = flags
                .remove(setting.name)
                .map(|text| Found { text, place: format!("--{}", setting.name) })
                .or_else(|| environment(&variable).map(|text| Found { text, place: variable }))
                .or_else(|| stated.remove(setting.name))
                .or_else(|| {
                    let place = format!("--{}", setting.name);
                    setting.usual.map(|usual| Found { text: usual.to_owned(), place })
                });
            if let Some(found) = found.filter(|found| !found.text.is_empty()) {
                values.found.insert(setting.name, found);
            }
        }
        values
    }
}

impl Values {
    /// A setting that must be there.
    pub fn required<T, E: ToString>(&mut self, name: &str, parse: impl FnOnce(&str) -> Result<T, E>) -> Option<T> {
        if !self.found.contains_key(name) {
            let variable = environment_name(name);
            self.problems.push(format!("{name} is missing: give --{name}, {variable}, or {name} in the --config file"));
            return None;
        }
        self.optional(name, parse)
    }

    /// A setting that may be there.
    pub fn optional<T, E: ToString>(&mut self, name: &str, parse: impl FnOnce(&str) -> Result<T, E>) -> Option<T> {
        let found = self.found.get(name)?;
        match parse(&found.text) {
            Ok(value) => Some(value),
            Err(error) => {
                self.problems.push(format!("{}: {}", found.place, error.to_string()));
                None
            }
        }
    }

    /// A setting that is on or off; off unless given.
    pub fn is_on(&mut self, name: &str) -> bool {
        let parse = |text: &str| match text {
            "true" | "1" | "yes" => Ok(true),
            "false" | "0" | "no" => Ok(false),
            other => Err(format!("{other:?}: true or false is expected")),
        };
        self.optional(name, parse).unwrap_or(false)
    }

    /// Something is wrong with several of them.
    pub fn problem(&mut self, text: impl Into<String>) {
        self.problems.push(text.into());
    }

    /// All of them in use; or everything that is wrong.
    pub fn end<T>(self, settings: Option<T>) -> Result<T, Failure> {
        match settings {
            Some(settings) if self.problems.is_empty() => Ok(settings),
            _ => {
                let next = "see what there is to set with --help, and docs/fleet.md";
                Err(Failure::usage(format!("the settings can't be used:\n  {}", self.problems.join("\n  "))).next(next))
            }
        }
    }
}

/// Takes a text as it is.
pub fn text(text: &str) -> Result<String, String> {
    Ok(text.to_owned())
}

/// Takes a path.
pub fn path(text: &str) -> Result<PathBuf, String> {
    Ok(PathBuf::from(text))
}

/// The contents of a small file, without what surrounds them.
pub fn contents(text: &str) -> Result<String, String> {
    let fault = |error: std::io::Error| format!("{text} can't be read: {error}");
    if std::fs::metadata(text).map_err(fault)?.len() > LONGEST {
        return Err(format!("{text} is longer than {LONGEST} bytes"));
    }
    let held = std::fs::read_to_string(text).map_err(fault)?;
    let held = held.trim();
    if held.is_empty() { Err(format!("{text} is empty")) } else { Ok(held.to_owned()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::programs::{agent::AgentProgram, coordinator::CoordinatorProgram};

    struct Lamp;

    impl Program for Lamp {
        const SETTINGS: &'static [Setting] = &[
            Setting { name: "broker-url", value: "URL", help: "Where", usual: None },
            Setting { name: "listen", value: "HOST:PORT", help: "Where", usual: Some("127.0.0.1:1") },
            Setting { name: "bright", value: "", help: "Whether", usual: None },
            Setting { name: "height", value: "N", help: "How high", usual: None },
        ];
    }

    fn given(line: &[&str]) -> Given<Lamp> {
        let command = Given::<Lamp>::augment_args(Command::new("lamp"));
        Given::from_arg_matches(&command.try_get_matches_from([&["lamp"], line].concat()).unwrap()).unwrap()
    }

    fn values(line: &[&str], file: &str, environment: &[(&str, &str)]) -> Values {
        let file = Some(("lamp.toml".to_owned(), Ok(file.to_owned())));
        let of = |name: &str| environment.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned());
        given(line).collect_from(file, of)
    }

    #[test]
    fn flags_go_before_the_environment_before_the_file_before_what_is_usual() {
        let file = "broker-url = \"file\"\nlisten = \"file\"\nbright = true\nheight = 7";
        let environment = [("OCOPEA_BROKER_URL", "environment"), ("OCOPEA_LISTEN", "environment")];
        let mut all = values(&["--listen", "flag"], file, &environment);
        assert_eq!(all.required("listen", text).as_deref(), Some("flag"));
        assert_eq!(all.required("broker-url", text).as_deref(), Some("environment"));
        assert_eq!(all.required("height", str::parse::<u32>), Some(7));
        assert!(all.is_on("bright"));
        let mut none = values(&[], "", &[]);
        assert_eq!(none.required("listen", text).as_deref(), Some("127.0.0.1:1"));
        assert_eq!(none.optional("height", text), None);
        assert!(!none.is_on("bright"));
        assert!(none.end(Some(())).is_ok());
    }

    #[test]
    fn all_that_is_wrong_is_said_at_once_with_where_it_stands() {
        let mut all =
            values(&[], "broker_url = \"x\"\nnothing = 1\nlisten = [1]\nheight = 1.5", &[("OCOPEA_BRIGHT", "no!")]);
        all.required("broker-url", text);
        all.required("height", str::parse::<u32>);
        all.is_on("bright");
        all.problem("both can't be");
        let said = all.end(Some(())).unwrap_err();
        assert_eq!(said.status, 2);
        for part in [
            "lamp.toml: broker_url: there is no such setting; broker-url may be meant",
            "lamp.toml: nothing: there is no such setting",
            "lamp.toml: listen: a text",
            "broker-url is missing: give --broker-url, OCOPEA_BROKER_URL",
            "lamp.toml: height: invalid digit",
            "OCOPEA_BRIGHT: \"no!\"",
            "both can't be",
        ] {
            assert!(said.what.contains(part), "{part}: {}", said.what);
        }
    }

    #[test]
    fn every_setting_is_in_the_documents() {
        let document = include_str!("../../../docs/fleet.md");
        let of = [CoordinatorProgram::SETTINGS, AgentProgram::SETTINGS].concat();
        let missing: Vec<&str> =
            of.iter().map(|s| s.name).filter(|name| !document.contains(&format!("`{name}`"))).collect();
        assert_eq!(missing, [""; 0]);
    }

    #[test]
    fn a_file_that_is_none_is_a_wrong_setting() {
        let said = values(&[], "= nothing", &[]).end(Some(())).unwrap_err();
        assert!(said.what.contains("lamp.toml is no TOML file"), "{}", said.what);
    }
}
