//! Where the settings come from: defaults < file < environment < flags.

use super::variables::{OF_COMMANDS, OF_THE_PROGRAM, PREFIX};
use super::{DatabaseUrl, RedisUrl, Settings};
use crate::connect::secret::SecretFile;
use figment::providers::{Format as _, Toml};
use figment::value::{Dict, Map, Num, Value};
use figment::{Figment, Metadata, Profile, Provider};
use serde::Serialize;
use std::env::{self, VarError};
use std::fmt::Display;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Letters to change from a name that was meant.
const NEAR: usize = 3;
/// Settings that may hold a secret, and by which name a file is given that holds it.
const SECRETS: [(&str, &str); 3] = [
    ("redis_url", "redis_url_file"),
    ("database_url", "database_url_file"),
    ("mcp_server", "mcp_server_file"),
];

/// Why there are no settings: the message names the setting, where it came from, and its value unless that
/// may be secret.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct LoadError(String);

impl LoadError {
    fn new(message: impl Display) -> Self {
        Self(message.to_string())
    }
}

impl Settings {
    /// The settings of the file that `CONVOKE_CONFIG` names, if it names one, and of the variables
    /// `CONVOKE_REDIS_URL`, `CONVOKE_ROLE` and so on, which win; an empty one counts as not set. All others
    /// have their defaults.
    ///
    /// What may hold a secret can stand in a file of its own, which `CONVOKE_REDIS_URL_FILE`,
    /// `CONVOKE_DATABASE_URL_FILE` or `CONVOKE_MCP_SERVER_FILE` names. That one is read again for each new
    /// connection, so a password that was rotated is used from then on.
    ///
    /// ```no_run
    /// # fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// use convoke::settings::Settings;
    ///
    /// let settings = Settings::load()?;
    /// let client = convoke::Client::of(&settings)?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// For a file that cannot be read, a value that is out of range, and a setting or variable of that
    /// beginning that there is not.
    pub fn load() -> Result<Self, LoadError> {
        let file = env::var_os("CONVOKE_CONFIG").filter(|path| !path.is_empty());
        load(file.as_deref().map(Path::new), Dict::new())
    }
}

/// What was given of a part of the settings, by their names.
#[doc(hidden)]
pub fn given<T: Serialize>(part: &T) -> Result<Dict, LoadError> {
    match Value::serialize(part).map_err(LoadError::new)? {
        Value::Dict(_, dict) => Ok(dict),
        _ => Ok(Dict::new()),
    }
}

/// Merges all sources and checks the result; `flags` are those of a command line.
///
/// # Errors
/// See [`LoadError`].
#[doc(hidden)]
pub fn load(file: Option<&Path>, flags: Dict) -> Result<Settings, LoadError> {
    for (setting, in_file) in SECRETS {
        if has_password(&flags, setting) {
            return Err(LoadError::new(format_args!(
                "{}: carries a password, and everyone on this machine can read arguments; \
                 set {}, {setting} in the file of --config, or {} instead",
                Source::Flags.place(setting),
                variable(setting),
                Source::Flags.place(in_file)
            )));
        }
    }
    let mut known = given(&Settings::default())?;
    known.extend(SECRETS.map(|(_, in_file)| (in_file.to_owned(), Value::from(""))));
    let mut files = SecretFiles::new();
    let mut figment = Figment::new();
    if let Some(file) = file {
        let layer = from_file(file, &known)?;
        if SECRETS
            .iter()
            .any(|(setting, _)| has_password(&layer.values, setting))
        {
            warn_if_open(file, "holds a password");
        }
        figment = figment.merge(layer.with_secrets(&mut files)?);
    }
    for layer in [from_environment(&known)?, Layer::new(Source::Flags, flags)] {
        figment = figment.merge(layer.with_secrets(&mut files)?);
    }
    let mut settings: Settings = figment.extract().map_err(|error| {
        let place = place(error.metadata.as_ref(), &error.path.join("."));
        LoadError::new(format_args!("{place}: {}", error.kind))
    })?;
    let place_of_file = |setting: &str| Some(files.get(setting)?.1.clone());
    for (setting, (file, _)) in &files {
        settings.follow(setting, file);
    }
    settings.check().map_err(|error| {
        let place = place_of_file(error.setting)
            .unwrap_or_else(|| place(figment.find_metadata(error.setting), error.setting));
        LoadError::new(format_args!("{place}: {}", error.problem))
    })?;
    if !settings.tls_key.is_empty() {
        warn_if_open(Path::new(&settings.tls_key), "is a private key");
    }
    Ok(settings)
}

fn has_password(values: &Dict, setting: &str) -> bool {
    values
        .get(setting)
        .and_then(Value::as_str)
        .is_some_and(|url| match setting {
            "redis_url" => RedisUrl::new(url).has_password(),
            "database_url" => DatabaseUrl::new(url).has_password(),
            _ => false,
        })
}

/// Warns of a secret that everyone on this machine can read.
fn warn_if_open(file: &Path, secret: &str) {
    const OTHERS_READ: u32 = 0o004;
    if std::fs::metadata(file).is_ok_and(|file| file.mode() & OTHERS_READ != 0) {
        let file = file.display();
        tracing::warn!(
            "{file} {secret}, and everyone on this machine can read it: chmod 600 {file}"
        );
    }
}

/// Values from one source.
struct Layer {
    source: Source,
    values: Dict,
}

#[derive(Clone)]
enum Source {
    File(String),
    Environment,
    Flags,
}

impl Layer {
    fn new(source: Source, values: Dict) -> Self {
        Self { source, values }
    }
}

/// The files that hold secrets, by setting, with what each is called where it was given.
type SecretFiles = Map<&'static str, (SecretFile, String)>;

impl Layer {
    /// The same with what the files hold that it names, which are noted. What it gives itself is not in a file
    /// any more that an earlier source named.
    fn with_secrets(mut self, files: &mut SecretFiles) -> Result<Self, LoadError> {
        for (setting, in_file) in SECRETS {
            let place = self.source.place(in_file);
            let path = match self.values.remove(in_file) {
                Some(Value::String(_, path)) => Some(path).filter(|path| !path.is_empty()),
                Some(_) => return Err(LoadError::new(format_args!("{place}: not a path"))),
                None => None,
            };
            match path {
                Some(_) if self.values.contains_key(setting) => {
                    return Err(LoadError::new(format_args!(
                        "{place}: {} is set as well: leave one of them out",
                        self.source.place(setting)
                    )));
                }
                Some(path) => {
                    let file = SecretFile::open(Path::new(&path))
                        .map_err(|problem| LoadError::new(format_args!("{place}: {problem}")))?;
                    let held = file.read_again(|_| Ok(()));
                    self.values.insert(setting.to_owned(), Value::from(held));
                    files.insert(setting, (file, place));
                }
                None if self.values.contains_key(setting) => {
                    files.remove(setting);
                }
                None => {}
            }
        }
        Ok(self)
    }
}

impl Settings {
    /// Has the setting be what that file holds, now and later.
    fn follow(&mut self, setting: &str, file: &SecretFile) {
        let file = file.clone();
        match setting {
            "redis_url" => self.redis_url = self.redis_url.clone().of_file(file),
            "database_url" => self.database_url = self.database_url.clone().of_file(file),
            _ => self.mcp_server = self.mcp_server.clone().of_file(file),
        }
    }
}

impl Source {
    /// How the setting is called there.
    fn place(&self, setting: &str) -> String {
        match self {
            Source::File(path) => format!("{path}: {setting}"),
            Source::Environment => variable(setting),
            Source::Flags if setting.starts_with("patterns") => "--pattern".to_owned(),
            Source::Flags => format!("--{}", setting.replace('_', "-")),
        }
    }
}

impl Provider for Layer {
    fn metadata(&self) -> Metadata {
        let source = self.source.clone();
        Metadata::named("settings").interpolater(move |_, path| source.place(&path.join(".")))
    }

    fn data(&self) -> Result<Map<Profile, Dict>, figment::Error> {
        Ok(Profile::Default.collect(self.values.clone()))
    }
}

/// What an error calls the setting: by the form in which it was given.
fn place(metadata: Option<&Metadata>, setting: &str) -> String {
    metadata.map_or_else(
        || setting.to_owned(),
        |metadata| metadata.interpolate(&Profile::Default, &[setting]),
    )
}

fn variable(setting: &str) -> String {
    format!("{PREFIX}{}", setting.replace('.', "_").to_ascii_uppercase())
}

fn from_file(file: &Path, known: &Dict) -> Result<Layer, LoadError> {
    let path = file.display();
    let misuse = |problem: &str| LoadError::new(format_args!("{path}: {problem}"));
    let text = std::fs::read_to_string(file)
        .map_err(|error| misuse(&format!("cannot be read: {error}")))?;
    // The parser's whole message quotes the line, which may hold a password.
    let values: Dict = Toml::from_str(&text).map_err(|error| {
        let at = error.span().map_or(0, |span| span.start.min(text.len()));
        let line = 1 + text.as_bytes()[..at]
            .iter()
            .filter(|&&b| b == b'\n')
            .count();
        let problem = error.message().lines().next().unwrap_or("not TOML");
        misuse(&format!("line {line}: {problem}"))
    })?;
    if let Some(key) = values.keys().find(|key| !known.contains_key(*key)) {
        let names = known.keys().map(String::as_str);
        return Err(misuse(&unknown(key, names)));
    }
    Ok(Layer::new(Source::File(path.to_string()), values))
}

/// The variables that name a setting. An empty one counts as not set.
///
/// What a variable holds is text: its setting's default, not its looks, says whether it is taken as
/// a number or a list, so an id of 7 stays one.
fn from_environment(known: &Dict) -> Result<Layer, LoadError> {
    refuse_unknown(known)?;
    let mut values = Dict::new();
    for (setting, default) in leaves(known) {
        let variable = variable(&setting);
        let text = match env::var(&variable) {
            Ok(text) if text.is_empty() => continue,
            Ok(text) => text,
            Err(VarError::NotPresent) => continue,
            Err(VarError::NotUnicode(_)) => {
                return Err(LoadError::new(format_args!("{variable}: not UTF-8")));
            }
        };
        let value = match default {
            Value::Num(_, Num::F64(_)) => match text.trim().parse::<f64>() {
                Ok(number) => Value::from(number),
                Err(_) => {
                    let problem = format_args!("{variable}: {text:?} is not a number");
                    return Err(LoadError::new(problem));
                }
            },
            Value::Num(..) => match text.trim().parse::<u64>() {
                Ok(number) => Value::from(number),
                Err(_) => {
                    let problem = format_args!("{variable}: {text:?} is not a whole number");
                    return Err(LoadError::new(problem));
                }
            },
            Value::Array(..) => Value::from(items(&text)),
            _ => Value::from(text),
        };
        match setting.split_once('.') {
            None => drop(values.insert(setting, value)),
            Some((table, name)) => {
                let table = values.entry(table.to_owned());
                if let Value::Dict(_, table) = table.or_insert_with(|| Dict::new().into()) {
                    table.insert(name.to_owned(), value);
                }
            }
        }
    }
    Ok(Layer::new(Source::Environment, values))
}

/// The settings that have one value each; those of a table are written `table.name`.
fn leaves(known: &Dict) -> Vec<(String, &Value)> {
    let mut found = Vec::new();
    for (setting, default) in known {
        match default {
            Value::Dict(_, table) => found.extend(
                table
                    .iter()
                    .map(|(name, default)| (format!("{setting}.{name}"), default)),
            ),
            _ => found.push((setting.clone(), default)),
        }
    }
    found
}

/// A variable that nobody reads is a slip, as an unknown setting in the file is.
fn refuse_unknown(known: &Dict) -> Result<(), LoadError> {
    let settings = leaves(known).into_iter();
    let settings: Vec<String> = settings.map(|(setting, _)| variable(&setting)).collect();
    let others = OF_THE_PROGRAM.into_iter().chain(OF_COMMANDS);
    let names: Vec<&str> = settings.iter().map(String::as_str).chain(others).collect();
    for (name, value) in env::vars_os() {
        let (name, value) = (name.to_string_lossy(), value.to_string_lossy());
        if name.starts_with(PREFIX)
            && !value.is_empty()
            && !names.contains(&&*name)
            && !is_link(&name)
        {
            let problem = unknown(&name, names.iter().copied());
            return Err(LoadError::new(format_args!("{problem} (environment)")));
        }
    }
    Ok(())
}

/// Whether that is a variable by which Kubernetes tells every container of a Service, whose name may
/// begin with `convoke`.
fn is_link(name: &str) -> bool {
    let port = |part: &str| part.starts_with(|c: char| c.is_ascii_digit());
    name.ends_with("_SERVICE_HOST")
        || name.contains("_SERVICE_PORT")
        || name.ends_with("_PORT")
        || name.split("_PORT_").skip(1).any(port)
}

/// What is said of a setting that there is not.
fn unknown<'a>(name: &str, names: impl Iterator<Item = &'a str> + Clone) -> String {
    let written = name.to_ascii_lowercase();
    let distance =
        |known: &&str| strsim::damerau_levenshtein(&written, &known.to_ascii_lowercase());
    match names.clone().min_by_key(distance) {
        Some(meant) if distance(&meant) <= NEAR => {
            format!("unknown setting {name:?}; did you mean {meant}?")
        }
        _ => {
            let names: Vec<&str> = names.collect();
            format!("unknown setting {name:?}; there are {}", names.join(", "))
        }
    }
}

/// `a, b` or `["a", "b"]`.
fn items(text: &str) -> Vec<String> {
    let text = text.trim();
    let inner = text.strip_prefix('[').and_then(|t| t.strip_suffix(']'));
    inner
        .unwrap_or(text)
        .split(',')
        .map(|item| item.trim().trim_matches('"').to_owned())
        .filter(|item| !item.is_empty())
        .collect()
}
