//! The fields that concern one hop and end at it (RFC 9110 §7.6.1), for both directions.

/// Whether a field ends at this hop by itself; `name` in lower case.
pub fn ends_here(name: &str) -> bool {
    matches!(
        name,
        "connection" | "transfer-encoding" | "upgrade" | "te" | "expect" | "keep-alive" | "proxy-connection"
    )
}

/// Whether `Connection` can declare this field hop-by-hop. Without the others a message would mean
/// something else, or a client could hide what the gateway vouches for.
pub fn may_be_named(name: &str) -> bool {
    !matches!(
        name,
        "host"
            | "content-length"
            | "via"
            | "authorization"
            | "cookie"
            | "cache-control"
            | "trailer"
            | "forwarded"
            | "x-forwarded-for"
            | "x-forwarded-proto"
            | "x-forwarded-host"
            | "x-request-id"
            | "x-real-ip"
    )
}

/// Whether a field may stand in a trailer section and be passed on: none that frames, routes or
/// authenticates a message, or that the gateway vouches for (RFC 9110 §6.5.1).
pub fn may_trail(name: &str) -> bool {
    let of_the_content = name.starts_with("content-") && name != "content-digest";
    !ends_here(name) && may_be_named(name) && !of_the_content && !matches!(name, "set-cookie" | "range")
}
