use super::*;
use proptest::prelude::*;

#[test]
fn only_refused_credentials_are_final() {
    use crate::connect::error::Reaction;
    let reaction = |text: &[u8]| refused(text).reaction();
    assert_eq!(reaction(b"WRONGPASS invalid"), Reaction::GiveUp);
    assert_eq!(reaction(b"ERR DB index is out of range"), Reaction::GiveUp);
    // What is read where the answer to AUTH should be.
    let crowded = b"ERR max number of clients reached";
    assert_eq!(reaction(crowded), Reaction::Reconnect);
}

fn found(bytes: &[u8]) -> Result<Option<usize>, NoResp> {
    let mut extent = Extent::START;
    extent.find(bytes)
}

#[test]
fn a_reply_ends_where_it_ends() {
    let replies: [&[u8]; 9] = [
        b"+OK\r\n",
        b"-ERR no\r\n",
        b":-7\r\n",
        b"$-1\r\n",
        b"$0\r\n\r\n",
        b"$4\r\na\r\nb\r\n",
        b"*-1\r\n",
        b"*0\r\n",
        b"*2\r\n*1\r\n$1\r\nx\r\n:1\r\n",
    ];
    for reply in replies {
        let more = [reply, b"+NEXT\r\n"].concat();
        assert_eq!(found(&more), Ok(Some(reply.len())), "{reply:?}");
        for cut in 0..reply.len() {
            assert_eq!(found(&reply[..cut]), Ok(None), "{reply:?} cut at {cut}");
        }
        let mut tokens = Tokens::new(reply);
        assert_eq!(tokens.skip(), Ok(()));
        assert!(tokens.rest().is_empty());
    }
}

#[test]
fn what_is_no_resp_is_refused() {
    for bad in [
        &b"hello\r\n"[..],
        b"$x\r\n",
        b"$-2\r\n",
        b"*-2\r\n",
        b"\r\n",
        b"+OK\n",
        b"*9223372036854775807\r\n*9223372036854775807\r\n*9\r\n",
        b"$9223372036854775807\r\n",
    ] {
        let found = found(bad);
        assert!(matches!(found, Err(NoResp) | Ok(None)), "{found:?}");
    }
    assert_eq!(found(b"hello\r\n"), Err(NoResp));
}

#[test]
fn an_error_is_the_librarys() {
    let error = server_error(b"NOGROUP No such key");
    assert_eq!(error.code(), Some("NOGROUP"));
    let error = server_error(b"READONLY You can't write");
    assert_eq!(error.code(), Some("READONLY"));
}

fn reply() -> impl Strategy<Value = Vec<u8>> {
    let leaf = prop_oneof![
        "[A-Z ]{0,8}".prop_map(|text| format!("+{text}\r\n").into_bytes()),
        any::<i64>().prop_map(|number| format!(":{number}\r\n").into_bytes()),
        proptest::collection::vec(any::<u8>(), 0..30).prop_map(|bulk| {
            let mut bytes = format!("${}\r\n", bulk.len()).into_bytes();
            bytes.extend(bulk);
            bytes.extend(b"\r\n");
            bytes
        }),
        Just(b"$-1\r\n".to_vec()),
    ];
    leaf.prop_recursive(4, 40, 6, |inner| {
        proptest::collection::vec(inner, 0..6).prop_map(|parts| {
            let mut bytes = format!("*{}\r\n", parts.len()).into_bytes();
            bytes.extend(parts.concat());
            bytes
        })
    })
}

proptest! {
    #[test]
    fn a_reply_that_arrives_bit_by_bit_is_found_once_whole(reply in reply(), step in 1usize..9) {
        let mut extent = Extent::START;
        for end in (0..reply.len()).step_by(step) {
            prop_assert_eq!(extent.find(&reply[..end]), Ok(None));
        }
        prop_assert_eq!(extent.find(&reply), Ok(Some(reply.len())));
        let mut tokens = Tokens::new(&reply);
        prop_assert_eq!(tokens.skip(), Ok(()));
        prop_assert!(tokens.rest().is_empty());
    }

    #[test]
    fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
        found(&bytes).ok();
        Tokens::new(&bytes).skip().ok();
    }

    #[test]
    fn commands_are_resp(words in proptest::collection::vec(
        proptest::collection::vec(any::<u8>(), 0..20), 1..6)) {
        let mut commands = Commands::default();
        let borrowed: Vec<&[u8]> = words.iter().map(Vec::as_slice).collect();
        commands.add(&borrowed);
        let mut tokens = Tokens::new(&commands.bytes);
        prop_assert_eq!(tokens.token(), Ok(Token::Array(words.len())));
        for word in &borrowed {
            prop_assert_eq!(tokens.token(), Ok(Token::Bulk(word)));
        }
    }
}
