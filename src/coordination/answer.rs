//! What a script answers, by name: the fields of a struct, in the order in which the script returns them.

/// Declares a struct that is read from an array of as many values.
macro_rules! answer {
    (
        $(#[$about:meta])*
        $vis:vis struct $name:ident {
            $($(#[$what:meta])* $field:ident: $kind:ty,)+
        }
    ) => {
        $(#[$about])*
        $vis struct $name {
            $($(#[$what])* $vis $field: $kind,)+
        }

        impl redis::FromRedisValue for $name {
            fn from_redis_value(value: redis::Value) -> Result<Self, redis::ParsingError> {
                let ($($field,)+): ($($kind,)+) = redis::FromRedisValue::from_redis_value(value)?;
                Ok(Self { $($field,)+ })
            }
        }
    };
}

pub(super) use answer;

#[cfg(test)]
mod tests {
    use redis::{FromRedisValue, Value};

    super::answer! {
        /// Two values.
        #[derive(Debug, PartialEq)]
        struct Pair {
            name: String,
            /// May be missing.
            leader: Option<String>,
        }
    }

    #[test]
    fn fields_are_read_in_their_order_and_no_other_shape_is() {
        let text = |text: &str| Value::BulkString(text.into());
        let pair = |name: &str, leader: Option<&str>| Pair {
            name: name.into(),
            leader: leader.map(str::to_owned),
        };
        let read = |values: Vec<Value>| Pair::from_redis_value(Value::Array(values));
        assert_eq!(
            read(vec![text("a"), text("b")]).unwrap(),
            pair("a", Some("b"))
        );
        assert_eq!(read(vec![text("a"), Value::Nil]).unwrap(), pair("a", None));
        assert!(read(vec![text("a")]).is_err());
        assert!(read(vec![text("a"), text("b"), text("c")]).is_err());
        let rows = Value::Array(vec![
            Value::Array(vec![text("a"), Value::Nil]),
            Value::Array(vec![text("b"), text("c")]),
        ]);
        let rows = Vec::<Pair>::from_redis_value(rows).unwrap();
        assert_eq!(rows, [pair("a", None), pair("b", Some("c"))]);
    }
}
