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
    /// Checks the paths, and how deep they lead.
    ///
    /// # Errors
    /// Names the one that is not valid.
    pub fn check(&self) -> Result<(), String> {
        let paths = match self {
            Mend::Set { path, .. } | Mend::Unset { path } => [path, path],
            Mend::Rename { from, to } => [from, to],
        };
        let odd = |path: &&&String| path.len() > 1024 || path.split('.').any(str::is_empty);
        if let Some(path) = paths.iter().find(odd) {
            return Err(format!("{:?} is no path such as user.name", start(path)));
        }
        let most = PayloadLimits::default().depth;
        let value = match self {
            Mend::Set { value, .. } => value,
            Mend::Unset { .. } | Mend::Rename { .. } => &Value::Nil,
        };
        paths.iter().try_for_each(|path| deep(path, value, most))
    }
}

/// Refuses a value that would lie deeper there than a payload may be nested: what walks over it later recurses.
fn deep(path: &str, value: &Value, most: usize) -> Result<(), String> {
    let names = path.split('.').count();
    match most.checked_sub(names) {
        Some(rest) if fits(value, rest) => Ok(()),
        _ => Err(format!(
            "{}: nested deeper there than the limit of {most}",
            start(path)
        )),
    }
}

/// Whether at most `depth` arrays and maps are nested in it.
fn fits(value: &Value, depth: usize) -> bool {
    let inside = |inner: &Value| fits(inner, depth - 1);
    match value {
        Value::Array(items) => depth > 0 && items.iter().all(inside),
        Value::Map(pairs) => depth > 0 && pairs.iter().all(|(k, v)| inside(k) && inside(v)),
        _ => true,
    }
}

/// As much of a path as a message takes.
fn start(path: &str) -> &str {
    &path[..path.floor_char_boundary(64)]
}

/// The payload (MessagePack) with these changes, one after the other; `None` if they leave it as it is. Neither in between
/// nor in the end is it nested deeper than the limits allow; in the end it is no larger either.
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
            Mend::Set { path, value: to } => {
                deep(path, to, limits.depth)?;
                set(&mut value, path, to.clone())?;
            }
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
                deep(to, &moved, limits.depth)?;
                set(&mut value, to, moved)?;
            }
        }
    }
    if value == before {
        return Ok(None);
    }
    let mut mended = Vec::with_capacity(data.len() + 64);
    rmpv::encode::write_value(&mut mended, &value).map_err(|error| error.to_string())?;
    msgpack::scan(&mended, limits).map_err(|error| error.to_string())?;
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
    fn chained_renames_nest_no_deeper_than_a_payload_may() {
        let long = |name: &str| vec![name; 512].join(".");
        let rename = |from: &str, to: String| Mend::Rename {
            from: from.into(),
            to,
        };
        let there_and_back = |_| [rename("b", long("a")), rename("a", long("b"))];
        let mut mends = vec![set_to("b", 1)];
        mends.extend((0..49).flat_map(there_and_back));
        // As a worker has it: a thread of 2 MiB.
        let tried = std::thread::spawn(move || {
            let data = json::from_json(&json!(null));
            let checked = mends.iter().try_for_each(Mend::check);
            (mend(&data, &mends, &PayloadLimits::default()), checked)
        });
        let (refused, checked) = tried.join().unwrap();
        assert!(refused.unwrap_err().contains("deeper"));
        assert!(checked.unwrap_err().contains("deeper"));
        // Each path by itself is short enough.
        let path = |name: &str| vec![name; 20].join(".");
        let mends = [
            set_to("b", 1),
            rename("b", path("a")),
            rename("a", path("b")),
        ];
        assert_eq!(mends.iter().try_for_each(Mend::check), Ok(()));
        assert!(mended(json!(null), &mends).unwrap_err().contains("deeper"));
        let most = vec!["a"; 32].join(".");
        assert!(mended(json!(null), &[set_to(&most, 1)]).is_ok());
        assert!(mended(json!(null), &[set_to(&most, Value::Array(vec![]))]).is_err());
    }

    #[test]
    fn what_is_mended_is_no_larger_than_a_payload_may_be() {
        let half = "x".repeat(600 << 10);
        let too_large = mended(json!({"a": half}), &[set_to("b", half.as_str())]);
        assert!(too_large.unwrap_err().contains("limit"));
    }

    #[test]
    fn a_payload_that_is_absent_becomes_a_map() {
        assert_eq!(mended(json!(null), &[set_to("v", 2)]), Ok(json!({"v": 2})));
    }
}
