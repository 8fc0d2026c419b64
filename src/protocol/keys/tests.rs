use super::*;

#[test]
fn a_type_runs_from_its_own_domain_and_from_inboxes_only() {
    let plain = Keys::new("cb").unwrap();
    let tagged = Keys::tagged("cb", 4).unwrap();
    for keys in [&plain, &tagged] {
        for kind in ["image.resize", "system.register", "task.create.now"] {
            let domain = domain_of(kind);
            for partition in 0..keys.partitions(domain) {
                assert!(keys.runs_from(kind, &keys.events(domain, partition)));
            }
            assert!(keys.runs_from(kind, &keys.inbox("w-1")));
            for other in ["text", "imag", "images", "system.register", ""] {
                assert!(!keys.runs_from(kind, &keys.events(other, 0)), "{other}");
            }
            for other in [
                keys.broadcast(),
                keys.dead(domain, 0),
                keys.reply(domain, 0, "me"),
            ] {
                assert!(!keys.runs_from(kind, &other), "{other}");
            }
        }
        let control = ["system.ping", "task.get"].map(|kind| (kind, keys.events("image", 0)));
        for (kind, stream) in control {
            assert!(!keys.runs_from(kind, &stream));
            assert!(!keys.runs_from("image.resize", &keys.events(domain_of(kind), 0)));
        }
    }
    assert!(!tagged.runs_from("image.resize", "{cb:image:x}:events"));
    assert!(!tagged.runs_from("image.resize", "{cb}:events:image"));
    assert!(!plain.runs_from("image.resize", "other:events:image"));
}

#[test]
fn plain_names_are_the_protocols() {
    let keys = Keys::new("cb").unwrap();
    assert_eq!(keys.events("image", 0), "cb:events:image");
    assert_eq!(keys.results("image", 0), "cb:results:image");
    assert_eq!(keys.reply("image", 0, "me"), "cb:reply:me");
    assert_eq!(keys.inbox("w-1"), "cb:inbox:w-1");
    assert_eq!(keys.broadcast(), "cb:broadcast");
    assert_eq!(keys.dead("image", 0), "cb:dead:image");
    assert_eq!(keys.instance("w-1"), "cb:instance:w-1");
    assert_eq!(keys.active(), "cb:instances:active");
    assert_eq!(keys.role("worker"), "cb:role:worker");
}

#[test]
fn tagged_names_share_a_slot() {
    let keys = Keys::tagged("cb", 8).unwrap();
    assert_eq!(keys.events("system", 0), "{cb}:events:system");
    assert_eq!(keys.instance("w-1"), "{cb}:instance:w-1");
    assert_eq!(keys.events("image", 3), "{cb:image:3}:events");
    assert_eq!(keys.reply("image", 3, "me"), "{cb:image:3}:reply:me");
    assert_eq!(keys.partitions("system"), 1);
    assert!(keys.partition_of("image", "user-7") < 8);
}

#[test]
fn a_delay_queue_is_known_by_the_stream_that_it_feeds() {
    let (plain, tagged) = (Keys::new("cb").unwrap(), Keys::tagged("cb", 4).unwrap());
    for keys in [&plain, &tagged] {
        for domain in ["image", "delayed", "system", "events"] {
            let partition = keys.partitions(domain) - 1;
            let route = keys.route(domain, partition);
            let stream = keys.fed_by(&route.delayed).expect(domain);
            assert_eq!(stream.key, route.events);
            assert_eq!(keys.delay_queue(&stream), Some(route.delayed));
            let dead = keys.stream_name(&route.dead).expect(domain);
            assert_eq!(keys.delay_queue(&dead), None);
            assert_eq!(keys.fed_by(&route.events), None);
        }
        let inbox = keys.inbox_route("w-1");
        let stream = keys.fed_by(&inbox.delayed).expect("an inbox");
        assert_eq!(stream.key, inbox.events);
        assert_eq!(keys.fed_by(&keys.old_inbox_delayed("w-1")), None);
        assert_eq!(keys.fed_by("cbx:delayed:image"), None);
        assert_eq!(keys.fed_by("cb:instances:active"), None);
    }
}

#[test]
fn stream_names_are_taken_apart() {
    let (plain, tagged) = (Keys::new("cb").unwrap(), Keys::tagged("cb", 4).unwrap());
    for (keys, key, kind, part, partition) in [
        (
            &plain,
            plain.events("image", 0),
            StreamKind::Events,
            "image",
            0,
        ),
        (&plain, plain.dead("image", 0), StreamKind::Dead, "image", 0),
        (&plain, plain.broadcast(), StreamKind::Broadcast, "", 0),
        (&plain, plain.inbox("w-1"), StreamKind::Inbox, "w-1", 0),
        (
            &tagged,
            tagged.events("image", 3),
            StreamKind::Events,
            "image",
            3,
        ),
        (
            &tagged,
            tagged.events("system", 0),
            StreamKind::Events,
            "system",
            0,
        ),
        (
            &tagged,
            tagged.reply("image", 2, "me"),
            StreamKind::Reply,
            "me",
            2,
        ),
        (&tagged, tagged.broadcast(), StreamKind::Broadcast, "", 0),
    ] {
        let name = keys.stream_name(&key).expect(&key);
        assert_eq!(
            (name.kind, &*name.part, name.partition),
            (kind, part, partition)
        );
        assert_eq!(name.key, key);
    }
    for key in [
        "cb:instance:w-1",
        "cbx:events:a",
        "cb:events:",
        "cb:events:a:b",
        "cb:broadcast:x",
        "cb:leader",
        "x",
        "{cb}:events:a",
    ] {
        assert_eq!(plain.stream_name(key), None, "{key}");
    }
    for key in [
        "cb:events:a",
        "{cb:image}:events",
        "{cb:image:x}:events",
        "{cb:image:1}:events:x",
        "{cb:image:1}:delayed",
        "{cbx}:events:a",
    ] {
        assert_eq!(tagged.stream_name(key), None, "{key}");
    }
    assert!(plain.share_slot("cb:dead:a", "cb:broadcast"));
    assert!(tagged.share_slot("{cb:a:1}:dead", "{cb:a:1}:events"));
    assert!(!tagged.share_slot("{cb:a:1}:dead", "{cb}:broadcast"));
}

#[test]
fn crc16_is_redis_clusters() {
    assert_eq!(crc16(b"123456789"), 0x31C3);
    // As `CLUSTER KEYSLOT` tells them.
    for (key, slot) in [
        ("foo", 12182),
        ("{foo}:bar", 12182),
        ("x{foo}{bar}", 12182),
        ("{}foo", 9500),
    ] {
        assert_eq!(slot_of(key.as_bytes()), slot, "{key}");
    }
}

#[test]
fn event_types() {
    for good in ["a.b", "system.heartbeat", "a_1.b_2.c3"] {
        assert!(is_event_type(good.as_bytes()), "{good}");
    }
    let long = format!("a.{}", "b".repeat(127));
    for bad in [
        "", "a", ".", "a.", ".a", "a..b", "A.b", "a.b*", "a.b\n", "a:b.c", "{a}.b", &long,
    ] {
        assert!(!is_event_type(bad.as_bytes()), "{bad}");
    }
}

#[test]
fn no_domain_is_called_like_a_stream_of_the_bus_itself() {
    for bad in ["inbox.a", "inbox.w.b", "broadcast.a", "reply.me"] {
        assert!(!is_event_type(bad.as_bytes()), "{bad}");
        let said = check_event_type(bad).unwrap_err().to_string();
        assert!(said.contains("a domain cannot be called"), "{said}");
    }
    for good in ["inboxes.a", "in.inbox", "replies.a", "task.inbox.a"] {
        assert_eq!(check_event_type(good), Ok(()), "{good}");
    }
}

#[test]
fn what_enters_an_inbox_waits_under_a_name_of_no_domain() {
    for keys in [Keys::new("cb").unwrap(), Keys::tagged("cb", 2).unwrap()] {
        let inbox = keys.inbox_route("w-1");
        let domain = keys.route("system", 0);
        let prefix = domain.delayed.strip_suffix("system").unwrap();
        assert!(!inbox.delayed.starts_with(prefix), "{}", inbox.delayed);
        assert!(keys.share_slot(&inbox.delayed, &inbox.events));
        assert_eq!(keys.stream_name(&inbox.delayed), None);
    }
}

#[test]
fn replies_go_to_reply_streams_and_inboxes_only() {
    let keys = Keys::new("cb").unwrap();
    let events = "cb:events:image";
    for good in ["cb:reply:me", "cb:inbox:w-1", "cb:reply:a.b_c-9"] {
        assert!(keys.may_reply_to(good, events), "{good}");
    }
    let long = format!("cb:reply:{}", "x".repeat(129));
    for bad in [
        "",
        "cb:reply:",
        "cb:reply:*",
        "cb:reply:a:b",
        "cb:reply:{a}",
        "other:reply:me",
        "cb:events:image",
        "cb:broadcast",
        "cb:instance:w-1",
        "cb:reply:a\n",
        "cbb:reply:a",
        &long,
    ] {
        assert!(!keys.may_reply_to(bad, events), "{bad}");
    }
    let tagged = Keys::tagged("cb", 4).unwrap();
    assert!(tagged.may_reply_to("{cb:image:1}:reply:me", "{cb:image:1}:events"));
    assert!(!tagged.may_reply_to("{cb:image:2}:reply:me", "{cb:image:1}:events"));
    assert!(tagged.may_reply_to("{cb}:reply:me", "{cb}:events:system"));
}
