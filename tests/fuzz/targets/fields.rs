//! Fields out of any bytes: one byte names a field, two say how long its value is.

pub(crate) fn cut<'a>(names: &[&'static str], mut data: &'a [u8]) -> Vec<(&'static str, &'a [u8])> {
    let mut fields = Vec::new();
    while let [name, high, low, rest @ ..] = data {
        let length = usize::from(u16::from_be_bytes([*high, *low])).min(rest.len());
        let (value, after) = rest.split_at(length);
        fields.push((names[usize::from(*name) % names.len()], value));
        data = after;
    }
    fields
}
