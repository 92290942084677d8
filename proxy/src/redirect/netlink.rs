//! nf_tables over netlink: builds messages, sends one batch, reads the table back.
//!
//! Promises: building and parsing are pure; a batch is applied by the kernel as a whole or not at all; an error names the
//! message of the batch that the kernel refused; waiting for the kernel is bounded.
//! Leaves to others: what the rules are (`rules`) and what an error means to the user (`mod`).
//! Formats: linux/netlink.h, linux/netfilter/nfnetlink.h, linux/netfilter/nf_tables.h.

use std::io;
use std::time::Duration;

use rustix::fd::OwnedFd;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, sockopt};

use super::rules::{Chain, Comparison, Expression, Rule, TABLE};

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP: u16 = 0x300;
const NLM_F_CREATE: u16 = 0x400;
const NLM_F_APPEND: u16 = 0x800;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const SUBSYSTEM: u16 = 10;
const NFPROTO_INET: u8 = 1;
const NFPROTO_UNSPEC: u8 = 0;

const NEW_TABLE: u16 = 0;
const DELETE_TABLE: u16 = 2;
const NEW_CHAIN: u16 = 3;
const GET_CHAIN: u16 = 4;
const NEW_RULE: u16 = 6;
const GET_RULE: u16 = 7;

/// Length of `nlmsghdr` and of `nfgenmsg` after it.
const HEADER: usize = 16;
const FAMILY_HEADER: usize = 4;
/// Attribute types carry two flags in their upper bits (`NLA_TYPE_MASK` removes them).
const ATTRIBUTE_TYPE: u16 = 0x3fff;
/// The kernel answers at once; a longer silence means that it will not answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Upper bound of one datagram of a dump (the kernel uses at most 32 KiB).
const DATAGRAM: usize = 64 * 1024;

/// What the kernel has to provide for a message to be accepted; used to explain a refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Needs {
    /// nf_tables itself and the `inet` family.
    Tables,
    /// Chains of type nat (`nft_chain_nat`).
    NatChains,
    /// The `fib` expression (`nft_fib_inet`).
    Fib,
    /// The `redir` expression (`nft_redir`).
    Redirect,
    /// Expressions that are part of nf_tables.
    Rules,
}

/// One message of a batch and what it says, for error texts.
#[derive(Clone, Debug)]
pub(crate) struct Message {
    /// The message as an nft command.
    pub(crate) command: String,
    /// What the kernel needs for it.
    pub(crate) needs: Needs,
    kind: u16,
    flags: u16,
    attributes: Vec<u8>,
}

/// What went wrong between us and the kernel.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel has no netlink socket for netfilter.
    #[error("cannot open a netfilter netlink socket")]
    Socket(#[source] io::Error),
    /// Sending or receiving failed.
    #[error("cannot talk to the kernel over netlink")]
    Transport(#[source] io::Error),
    /// The kernel refused everything before looking at a message.
    #[error("the kernel refused the batch")]
    Batch(#[source] io::Error),
    /// The kernel refused this message, and with it the batch.
    #[error("the kernel refused `{command}`")]
    Message {
        /// The message as an nft command.
        command: String,
        /// What the kernel needs for it.
        needs: Needs,
        /// The kernel's error number.
        #[source]
        cause: io::Error,
    },
    /// The kernel refused to list.
    #[error("the kernel refused to list {what}")]
    Dump {
        /// What was to be listed.
        what: &'static str,
        /// The kernel's error number.
        #[source]
        cause: io::Error,
    },
    /// Bytes from the kernel are not what the protocol says.
    #[error("the kernel's answer is not valid netlink")]
    Malformed,
}

/// What was found in the kernel: the text names of chains and the expressions of each rule.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Found {
    /// Chains of our table: name, hook number, priority, type.
    pub(crate) chains: Vec<(String, u32, i32, String)>,
    /// Rules of our table in order: chain and expressions; `None` for an expression that we do not know.
    pub(crate) rules: Vec<(String, Vec<Option<Expression>>)>,
}

/// The batch that replaces our table by one with `rules`. Adding first makes the deletion succeed on a fresh namespace.
pub(crate) fn install(rules: &[Rule]) -> Vec<Message> {
    let mut messages = vec![add_table(), delete_table(), add_table()];
    messages.extend(Chain::ALL.map(add_chain));
    messages.extend(rules.iter().map(add_rule));
    messages
}

/// The batch that removes our table, whether it is there or not.
pub(crate) fn remove() -> Vec<Message> {
    vec![add_table(), delete_table()]
}

fn add_table() -> Message {
    Message {
        command: format!("add table inet {TABLE}"),
        needs: Needs::Tables,
        kind: NEW_TABLE,
        flags: NLM_F_CREATE,
        attributes: text(1, TABLE),
    }
}

fn delete_table() -> Message {
    let attributes = text(1, TABLE);
    Message {
        command: format!("delete table inet {TABLE}"),
        needs: Needs::Tables,
        kind: DELETE_TABLE,
        flags: 0,
        attributes,
    }
}

fn add_chain(chain: Chain) -> Message {
    let hook = [number(1, chain.hook()), attribute(2, &Chain::PRIORITY.to_be_bytes())].concat();
    const ACCEPT: u32 = 1;
    Message {
        command: format!("add chain inet {TABLE} {} {{ {} }}", chain.name(), chain.declaration()),
        needs: Needs::NatChains,
        kind: NEW_CHAIN,
        flags: NLM_F_CREATE,
        attributes: [text(1, TABLE), text(3, chain.name()), nested(4, &hook), number(5, ACCEPT), text(7, "nat")]
            .concat(),
    }
}

fn add_rule(rule: &Rule) -> Message {
    let expressions: Vec<u8> =
        rule.expressions().iter().flat_map(|expression| nested(1, &encode(expression))).collect();
    let needs = if rule.needs_fib() {
        Needs::Fib
    } else if rule.needs_redirect() {
        Needs::Redirect
    } else {
        Needs::Rules
    };
    Message {
        command: format!("add rule inet {TABLE} {} {rule}", rule.chain.name()),
        needs,
        kind: NEW_RULE,
        flags: NLM_F_CREATE | NLM_F_APPEND,
        attributes: [text(1, TABLE), text(2, rule.chain.name()), nested(4, &expressions)].concat(),
    }
}

/// `NFTA_EXPR_NAME` and `NFTA_EXPR_DATA` of one expression.
fn encode(expression: &Expression) -> Vec<u8> {
    const REGISTER: u32 = 1;
    let value = |kind, bytes: &[u8]| nested(kind, &attribute(1, bytes));
    let (name, data) = match expression {
        Expression::Meta(key) => ("meta", [number(1, REGISTER), number(2, *key)].concat()),
        Expression::Compare(comparison, bytes) => {
            let operation = match comparison {
                Comparison::Equal => 0,
                Comparison::NotEqual => 1,
            };
            ("cmp", [number(1, REGISTER), number(2, operation), value(3, bytes)].concat())
        }
        Expression::Payload { base, offset, length } => {
            ("payload", [number(1, REGISTER), number(2, *base), number(3, *offset), number(4, *length)].concat())
        }
        Expression::Mask(mask) => {
            let length = u32::try_from(mask.len()).expect("a mask is 4 or 16 bytes long");
            let registers = [number(1, REGISTER), number(2, REGISTER), number(3, length)].concat();
            ("bitwise", [registers, value(4, mask), value(5, &vec![0; mask.len()])].concat())
        }
        Expression::DestinationType => ("fib", [number(1, REGISTER), number(2, 3), number(3, 2)].concat()),
        Expression::Port(port) => ("immediate", [number(1, REGISTER), value(2, &port.to_be_bytes())].concat()),
        Expression::Return => {
            const NFT_RETURN: i32 = -5;
            let verdict = nested(2, &nested(2, &attribute(1, &NFT_RETURN.to_be_bytes())));
            ("immediate", [number(1, 0), verdict].concat())
        }
        // NF_NAT_RANGE_PROTO_SPECIFIED: only the port is given, the address is the device's own.
        Expression::Redirect => ("redir", [number(1, REGISTER), number(3, 2)].concat()),
    };
    [text(1, name), nested(2, &data)].concat()
}

/// Reads one expression back; `None` when it is not one that [`encode`] writes.
fn decode(bytes: &[u8]) -> Option<Expression> {
    let name = find(bytes, 1)?;
    let data = find(bytes, 2)?;
    let be = |kind| find(data, kind).and_then(be32);
    let value = |kind| find(data, kind).and_then(|nest| find(nest, 1)).map(<[u8]>::to_vec);
    match name.strip_suffix(&[0])? {
        b"meta" => Some(Expression::Meta(be(2)?)),
        b"cmp" => Some(Expression::Compare(comparison(be(2)?)?, value(3)?)),
        b"payload" => Some(Expression::Payload { base: be(2)?, offset: be(3)?, length: be(4)? }),
        b"bitwise" => {
            let unchanged = value(5)?.iter().all(|byte| *byte == 0);
            unchanged.then_some(Expression::Mask(value(4)?))
        }
        b"fib" => (be(2)? == 3 && be(3)? == 2).then_some(Expression::DestinationType),
        b"immediate" if be(1)? == 0 => {
            let code = find(find(find(data, 2)?, 2)?, 1)?;
            (code == (-5_i32).to_be_bytes()).then_some(Expression::Return)
        }
        b"immediate" => Some(Expression::Port(u16::from_be_bytes(value(2)?.try_into().ok()?))),
        b"redir" => Some(Expression::Redirect),
        _ => None,
    }
}

fn comparison(operation: u32) -> Option<Comparison> {
    match operation {
        0 => Some(Comparison::Equal),
        1 => Some(Comparison::NotEqual),
        _ => None,
    }
}

/// Appends the padding that netlink wants to `payload` under an attribute header.
fn attribute(kind: u16, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(payload.len() + 4).expect("our attributes are far below 64 KiB");
    let mut out = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
    out.extend_from_slice(payload);
    out.resize(out.len().next_multiple_of(4), 0);
    out
}

fn nested(kind: u16, payload: &[u8]) -> Vec<u8> {
    attribute(kind | 0x8000, payload)
}

fn number(kind: u16, value: u32) -> Vec<u8> {
    attribute(kind, &value.to_be_bytes())
}

fn text(kind: u16, value: &str) -> Vec<u8> {
    attribute(kind, &[value.as_bytes(), &[0]].concat())
}

fn message(kind: u16, flags: u16, sequence: u32, family: u8, resource: u16, attributes: &[u8]) -> Vec<u8> {
    let length = u32::try_from(HEADER + FAMILY_HEADER + attributes.len()).expect("a message is far below 4 GiB");
    let mut out = Vec::with_capacity(HEADER + FAMILY_HEADER + attributes.len());
    out.extend_from_slice(&length.to_ne_bytes());
    out.extend_from_slice(&kind.to_ne_bytes());
    out.extend_from_slice(&(flags | NLM_F_REQUEST).to_ne_bytes());
    out.extend_from_slice(&sequence.to_ne_bytes());
    out.extend_from_slice(&0_u32.to_ne_bytes());
    out.extend_from_slice(&[family, 0]);
    out.extend_from_slice(&resource.to_be_bytes());
    out.extend_from_slice(attributes);
    out
}

/// The bytes of a batch. Messages are numbered from 1; only the last one asks for an acknowledgement, so that the answers
/// to a long batch cannot overflow our receive buffer.
pub(crate) fn encode_batch(messages: &[Message]) -> Vec<u8> {
    let mut out = message(BATCH_BEGIN, 0, 0, NFPROTO_UNSPEC, SUBSYSTEM, &[]);
    let mut sequence = 0;
    for item in messages {
        sequence += 1;
        let acknowledge = if sequence as usize == messages.len() { NLM_F_ACK } else { 0 };
        let kind = SUBSYSTEM << 8 | item.kind;
        out.extend(message(kind, item.flags | acknowledge, sequence, NFPROTO_INET, 0, &item.attributes));
    }
    out.extend(message(BATCH_END, 0, sequence + 1, NFPROTO_UNSPEC, SUBSYSTEM, &[]));
    out
}

/// Applies a batch as a whole. Blocks until the kernel has answered, at most some seconds.
pub(crate) fn apply(messages: &[Message]) -> Result<(), Error> {
    let socket = open()?;
    send(&socket, &encode_batch(messages))?;
    loop {
        let datagram = receive(&socket)?;
        for answer in split(&datagram)? {
            if answer.kind != NLMSG_ERROR {
                continue;
            }
            let index = answer.sequence.checked_sub(1).and_then(|index| usize::try_from(index).ok());
            match (status(answer.payload)?, index.and_then(|index| messages.get(index))) {
                (Some(cause), Some(refused)) => {
                    return Err(Error::Message { command: refused.command.clone(), needs: refused.needs, cause });
                }
                (Some(cause), None) => return Err(Error::Batch(cause)),
                (None, _) if answer.sequence as usize == messages.len() => return Ok(()),
                (None, _) => {}
            }
        }
    }
}

/// Reads our table's chains and rules from the kernel.
pub(crate) fn read_back() -> Result<Found, Error> {
    let mut found = Found::default();
    dump(GET_CHAIN, &[], "chains", |attributes| {
        if is_ours(attributes) {
            found.chains.push(parse_chain(attributes).ok_or(Error::Malformed)?);
        }
        Ok(())
    })?;
    dump(GET_RULE, &text(1, TABLE), "rules", |attributes| {
        if is_ours(attributes) {
            found.rules.push(parse_rule(attributes).ok_or(Error::Malformed)?);
        }
        Ok(())
    })?;
    Ok(found)
}

fn is_ours(attributes: &[u8]) -> bool {
    find(attributes, 1).and_then(string).as_deref() == Some(TABLE)
}

fn parse_chain(attributes: &[u8]) -> Option<(String, u32, i32, String)> {
    let hook = find(attributes, 4)?;
    let priority = i32::from_be_bytes(find(hook, 2)?.try_into().ok()?);
    Some((string(find(attributes, 3)?)?, be32(find(hook, 1)?)?, priority, string(find(attributes, 7)?)?))
}

fn parse_rule(attributes: &[u8]) -> Option<(String, Vec<Option<Expression>>)> {
    let expressions = Attributes(find(attributes, 4)?).map(|(_, element)| decode(element)).collect();
    Some((string(find(attributes, 2)?)?, expressions))
}

fn dump(
    kind: u16,
    filter: &[u8],
    what: &'static str,
    mut each: impl FnMut(&[u8]) -> Result<(), Error>,
) -> Result<(), Error> {
    let socket = open()?;
    send(&socket, &message(SUBSYSTEM << 8 | kind, NLM_F_DUMP, 1, NFPROTO_INET, 0, filter))?;
    loop {
        let datagram = receive(&socket)?;
        for answer in split(&datagram)? {
            match answer.kind {
                NLMSG_DONE => return Ok(()),
                NLMSG_ERROR => match status(answer.payload)? {
                    Some(cause) => return Err(Error::Dump { what, cause }),
                    None => return Ok(()),
                },
                _ => each(answer.payload.get(FAMILY_HEADER..).ok_or(Error::Malformed)?)?,
            }
        }
    }
}

fn open() -> Result<OwnedFd, Error> {
    let socket = rustix::net::socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        Some(netlink::NETFILTER),
    )
    .map_err(|errno| Error::Socket(errno.into()))?;
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(PATIENCE))
        .map_err(|errno| Error::Socket(errno.into()))?;
    Ok(socket)
}

fn send(socket: &OwnedFd, bytes: &[u8]) -> Result<(), Error> {
    rustix::net::send(socket, bytes, SendFlags::empty()).map_err(|errno| Error::Transport(errno.into()))?;
    Ok(())
}

fn receive(socket: &OwnedFd) -> Result<Vec<u8>, Error> {
    let mut buffer = vec![0; DATAGRAM];
    let (length, _) = rustix::net::recv(socket, &mut buffer[..], RecvFlags::empty())
        .map_err(|errno| Error::Transport(errno.into()))?;
    buffer.truncate(length);
    Ok(buffer)
}

/// One message of an answer.
struct Answer<'a> {
    kind: u16,
    sequence: u32,
    payload: &'a [u8],
}

fn split(mut datagram: &[u8]) -> Result<Vec<Answer<'_>>, Error> {
    let mut answers = Vec::new();
    while !datagram.is_empty() {
        let header = datagram.get(..HEADER).ok_or(Error::Malformed)?;
        let length = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
        let payload = datagram.get(HEADER..length).ok_or(Error::Malformed)?;
        answers.push(Answer {
            kind: u16::from_ne_bytes([header[4], header[5]]),
            sequence: u32::from_ne_bytes([header[8], header[9], header[10], header[11]]),
            payload,
        });
        datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(answers)
}

/// The error in the payload of an `NLMSG_ERROR`; `None` is an acknowledgement.
fn status(payload: &[u8]) -> Result<Option<io::Error>, Error> {
    let bytes = payload.first_chunk::<4>().ok_or(Error::Malformed)?;
    let code = i32::from_ne_bytes(*bytes);
    Ok((code != 0).then(|| io::Error::from_raw_os_error(code.saturating_neg())))
}

/// Iterates over attributes; stops at the first one that is not complete.
struct Attributes<'a>(&'a [u8]);

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let header = self.0.first_chunk::<4>()?;
        let length = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let payload = self.0.get(4..length)?;
        let kind = u16::from_ne_bytes([header[2], header[3]]) & ATTRIBUTE_TYPE;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, payload))
    }
}

fn find(attributes: &[u8], kind: u16) -> Option<&[u8]> {
    Attributes(attributes).find(|(found, _)| *found == kind).map(|(_, payload)| payload)
}

fn be32(bytes: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.try_into().ok()?))
}

fn string(bytes: &[u8]) -> Option<String> {
    String::from_utf8(bytes.strip_suffix(&[0])?.to_vec()).ok()
}
