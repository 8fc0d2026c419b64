//! Changes of a payload that are data: they may travel to whoever makes them, as a program may not.

use crate::protocol::msgpack::{self, PayloadLimits};
use rmpv::Value;
use serde::{Deserialize, Serialize};

/// A change of a payload. A path is names with dots between them; a number is an element of an array.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Mend {
    /// The value there is this one; maps on the way to it are made.
    Set {
        /// Where.
        path: String,
        /// What it is then.
        value: Value,
    },
    /// Nothing is there.
    Unset {
        /// Where.
        path: String,
    },
    /// What is here stands there.
    Rename {
        /// Here.
        from: String,
        /// The path that it gets, where nothing may stand.
        to: String,
    },
}

impl Mend {
    /// Checks the paths.
    ///
    /// # Errors
    /// Names the one that is not valid.
    pub fn check(&self) -> Result<(), String> {
        let paths = match self {
            Mend::Set { path, .. } | Mend::Unset { path } => [path, path],
            Mend::Rename { from, to } => [from, to],
        };
        let odd = |path: &&&String| path.len() > 1024 || path.split('.').any(str::is_empty);
        match paths.iter().find(odd) {
            Some(path) => {
                let path: String = path.chars().take(64).collect();
                Err(format!("{path:?} is no path such as user.name"))
            }
            None => Ok(()),
        }
    }
}

/// The payload (MessagePack) with these changes, one after the other; `None` if they leave it as it is.
///
/// # Errors
/// Says which change it does not take.
pub fn mend(
    data: &[u8],
    mends: &[Mend],
    limits: &PayloadLimits,
) -> Result<Option<Vec<u8>>, String> {
    msgpack::scan(data, limits).map_err(|error| error.to_string())?;
    let mut bytes = data;
    let before = rmpv::decode::read_value(&mut bytes).map_err(|error| error.to_string())?;
    let mut value = before.clone();
    for mend in mends {
        match mend {
            Mend::Set { path, value: to } => set(&mut value, path, to.clone())?,
            Mend::Unset { path } => {
                take(&mut value, path);
            }
            Mend::Rename { from, to } => {
                let Some(moved) = take(&mut value, from) else {
                    continue;
                };
                if find(&value, to).is_some() {
                    return Err(format!("{to}: something is there already"));
                }
                set(&mut value, to, moved)?;
            }
        }
    }
    if value == before {
        return Ok(None);
    }
    let mut mended = Vec::with_capacity(data.len() + 64);
    rmpv::encode::write_value(&mut mended, &value).map_err(|error| error.to_string())?;
    Ok(Some(mended))
}

fn place(pairs: &[(Value, Value)], name: &str) -> Option<usize> {
    pairs.iter().position(|(key, _)| key.as_str() == Some(name))
}

fn find<'a>(root: &'a Value, path: &str) -> Option<&'a Value> {
    let mut at = root;
    for name in path.split('.') {
        at = match at {
            Value::Map(pairs) => &pairs[place(pairs, name)?].1,
            Value::Array(items) => items.get(name.parse::<usize>().ok()?)?,
            _ => return None,
        };
    }
    Some(at)
}

fn set(root: &mut Value, path: &str, to: Value) -> Result<(), String> {
    let mut at = root;
    for name in path.split('.') {
        if at.is_nil() {
            *at = Value::Map(Vec::new());
        }
        at = match at {
            Value::Map(pairs) => {
                let place = place(pairs, name).unwrap_or_else(|| {
                    pairs.push((name.into(), Value::Nil));
                    pairs.len() - 1
                });
                &mut pairs[place].1
            }
            Value::Array(items) => {
                let count = items.len();
                let item = name.parse().ok().and_then(|n: usize| items.get_mut(n));
                item.ok_or_else(|| format!("{path}: {name} is no element of an array of {count}"))?
            }
            _ => return Err(format!("{path}: {name} would stand in what is no map")),
        };
    }
    *at = to;
    Ok(())
}

/// Takes out what is there, if anything is.
fn take(root: &mut Value, path: &str) -> Option<Value> {
    let (parents, name) = match path.rsplit_once('.') {
        Some((parents, name)) => (Some(parents), name),
        None => (None, path),
    };
    let mut at = root;
    for name in parents.into_iter().flat_map(|parents| parents.split('.')) {
        at = match at {
            Value::Map(pairs) => {
                let place = place(pairs, name)?;
                &mut pairs[place].1
            }
            Value::Array(items) => items.get_mut(name.parse::<usize>().ok()?)?,
            _ => return None,
        };
    }
    match at {
        Value::Map(pairs) => place(pairs, name).map(|place| pairs.remove(place).1),
        Value::Array(items) => {
            let place = name.parse().ok().filter(|n: &usize| *n < items.len())?;
            Some(items.remove(place))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::json;
    use serde_json::json;

    fn mended(before: serde_json::Value, mends: &[Mend]) -> Result<serde_json::Value, String> {
        let data = json::from_json(&before);
        let after = mend(&data, mends, &PayloadLimits::default())?;
        Ok(after.map_or(before, |after| json::to_json(&after).unwrap()))
    }

    fn set_to(path: &str, value: impl Into<Value>) -> Mend {
        Mend::Set {
            path: path.into(),
            value: value.into(),
        }
    }

    #[test]
    fn a_value_is_set_taken_away_and_renamed_where_the_path_leads() {
        let before = json!({"v": 1, "user": {"name": "ada"}, "items": [{"n": 1}, {"n": 2}]});
        let mends = [
            set_to("v", 2),
            set_to("a.b.c", "new"),
            set_to("items.1.n", 9),
            Mend::Unset {
                path: "items.0".into(),
            },
            Mend::Rename {
                from: "user.name".into(),
                to: "user.called".into(),
            },
        ];
        let after = mended(before, &mends).unwrap();
        let expected = json!({
            "v": 2, "user": {"called": "ada"}, "items": [{"n": 9}], "a": {"b": {"c": "new"}}
        });
        assert_eq!(after, expected);
    }

    #[test]
    fn what_is_not_there_is_no_change_and_what_cannot_be_is_said() {
        let absent = [
            Mend::Unset { path: "x.y".into() },
            Mend::Rename {
                from: "x".into(),
                to: "z".into(),
            },
            set_to("v", 1),
        ];
        let data = json::from_json(&json!({"v": 1}));
        assert_eq!(mend(&data, &absent, &PayloadLimits::default()), Ok(None));
        let wrong = mended(json!({"v": 1}), &[set_to("v.w", 1)]);
        assert!(wrong.unwrap_err().contains("v.w"));
        let taken = Mend::Rename {
            from: "v".into(),
            to: "w".into(),
        };
        let wrong = mended(json!({"v": 1, "w": 2}), &[taken]);
        assert!(wrong.unwrap_err().contains("already"));
        let beyond = mended(json!([1]), &[set_to("1", 1)]);
        assert!(beyond.unwrap_err().contains("array of 1"));
        let twice = set_to("a..b", 1).check();
        assert!(twice.unwrap_err().contains("a..b"));
        assert!(mend(b"\xc1", &[], &PayloadLimits::default()).is_err());
    }

    #[test]
    fn a_payload_that_is_absent_becomes_a_map() {
        assert_eq!(mended(json!(null), &[set_to("v", 2)]), Ok(json!({"v": 2})));
    }
}
