//! Any bytes as a server's answer: walking them ends, and never looks past them.

#![no_main]

use convoke::connect::resp::wire::{Token, Tokens, server_error};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let mut tokens = Tokens::new(data);
    let whole = tokens.clone().skip().is_ok();
    let mut left = 1_u64;
    while left > 0 {
        left -= 1;
        match tokens.token() {
            Ok(Token::Array(length)) => left = left.saturating_add(length as u64),
            Ok(Token::Error(text)) => drop(server_error(text)),
            Ok(_) => {}
            Err(_) => return assert!(!whole),
        }
    }
    assert!(whole);
});
