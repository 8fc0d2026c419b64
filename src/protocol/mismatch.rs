//! Says where a MessagePack value is not what a type wants, what is there, and what is wanted.

use rmp_serde::decode::Error;
use serde::de::DeserializeOwned;

/// What is wrong with a value that could not be decoded as a `T`: `width: invalid type: string "wide", expected u32`.
/// Decodes it again, slower.
#[cold]
pub(crate) fn mismatch<T: DeserializeOwned>(data: &[u8]) -> String {
    let mut decoder = rmp_serde::Deserializer::from_read_ref(data);
    let Err(error) = serde_path_to_error::deserialize::<_, T>(&mut decoder) else {
        return "data: not what is wanted".to_owned();
    };
    let path = error.path().to_string();
    let at = if path == "." { "data" } else { &path };
    // Of a type rmp-serde names the byte alone.
    let said = match error.inner() {
        Error::TypeMismatch(_) => wanted::<T>(data),
        _ => None,
    };
    let said = said.unwrap_or_else(|| error.inner().to_string());
    format!("{at}: {said}")
}

/// The same of a tree of values, which knows what is there.
fn wanted<T: DeserializeOwned>(mut data: &[u8]) -> Option<String> {
    let value = rmpv::decode::read_value_ref(&mut data).ok()?;
    match T::deserialize(value) {
        Err(rmpv::ext::Error::Syntax(said)) => Some(said),
        Ok(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;
    use serde_json::json;

    #[derive(Deserialize)]
    #[expect(dead_code)]
    struct Resize {
        width: u32,
        name: Option<String>,
    }

    fn says<T: DeserializeOwned>(value: &serde_json::Value) -> String {
        mismatch::<T>(&rmp_serde::to_vec_named(value).unwrap())
    }

    #[test]
    fn what_is_there_and_what_is_wanted_are_named() {
        assert_eq!(
            says::<Resize>(&json!({"width": "wide"})),
            "width: invalid type: string \"wide\", expected u32"
        );
        assert_eq!(
            says::<Resize>(&json!({"width": 1, "name": 2})),
            "name: invalid type: integer `2`, expected a string"
        );
        assert_eq!(
            says::<u32>(&json!("seven")),
            "data: invalid type: string \"seven\", expected u32"
        );
        assert_eq!(says::<Resize>(&json!({})), "data: missing field `width`");
    }

    #[test]
    fn bytes_that_are_no_value_are_said_to_be() {
        assert!(mismatch::<u32>(&[0xcd, 1]).starts_with("data: "));
        assert!(mismatch::<u32>(&[]).starts_with("data: "));
    }
}
