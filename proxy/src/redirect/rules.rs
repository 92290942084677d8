//! The redirect rules as values: what is installed, printed and compared.
//!
//! Promises: pure functions only; one description of a rule gives its nft text, its nf_tables expressions and, read back
//! from the kernel, an equal value again. IPv4 and IPv6 are covered by the one `inet` table.
//! Leaves to others: messages and sockets (`netlink`), options and errors (`mod`).

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

/// Name of the table that holds all our chains; we never touch another one.
pub(crate) const TABLE: &str = "picket";
/// Index of the loopback device: the first device of every network namespace.
const LOOPBACK_INDEX: u32 = 1;
/// `RTN_LOCAL` (linux/rtnetlink.h): an address of this network namespace.
const ROUTE_TYPE_LOCAL: u32 = 2;
const IPPROTO_TCP: u8 = 6;
const NFPROTO_IPV4: u8 = 2;
const NFPROTO_IPV6: u8 = 10;

/// A nat chain of our table. Both have priority -100 (`dstnat`), as nat chains that change destinations do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Chain {
    /// What the pod's programs send.
    Output,
    /// What arrives at the pod.
    Prerouting,
}

impl Chain {
    /// Both chains, in the order in which they are installed.
    pub(crate) const ALL: [Self; 2] = [Self::Output, Self::Prerouting];
    /// `NF_IP_PRI_NAT_DST`.
    pub(crate) const PRIORITY: i32 = -100;

    /// The chain's name, which is also its hook's.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Output => "output",
            Self::Prerouting => "prerouting",
        }
    }

    /// The hook's number (`NF_INET_LOCAL_OUT`, `NF_INET_PRE_ROUTING`).
    pub(crate) fn hook(self) -> u32 {
        match self {
            Self::Output => 3,
            Self::Prerouting => 0,
        }
    }

    /// The line that declares the chain, as nft prints it: only prerouting has a name for the priority.
    pub(crate) fn declaration(self) -> &'static str {
        match self {
            Self::Output => "type nat hook output priority -100; policy accept;",
            Self::Prerouting => "type nat hook prerouting priority dstnat; policy accept;",
        }
    }
}

/// What a rule looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Match {
    SocketUid(u32),
    OutputIsLoopback,
    InputIsLoopback,
    DestinationIsLocal,
    DestinationIsNotLocal,
    DestinationPort(u16),
    DestinationWithin(IpNet),
    AnyTcp,
}

/// What a rule does with a connection that it matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// Leave the connection as it is.
    Return,
    /// Send it to this local port.
    Redirect(u16),
}

/// One rule of one chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rule {
    /// The chain it belongs to.
    pub(crate) chain: Chain,
    condition: Match,
    verdict: Verdict,
}

/// One nf_tables expression: the instructions rules are made of. All values are in the byte order of the wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Expression {
    /// Loads a fact about the packet (`NFT_META_*`) into register 1.
    Meta(u32),
    /// Compares register 1.
    Compare(Comparison, Vec<u8>),
    /// Loads header bytes into register 1.
    Payload { base: u32, offset: u32, length: u32 },
    /// Masks register 1.
    Mask(Vec<u8>),
    /// Loads the route type of the destination into register 1.
    DestinationType,
    /// Loads a port into register 1.
    Port(u16),
    /// Ends the chain for this packet.
    Return,
    /// Redirects to the port in register 1.
    Redirect,
}

/// How [`Expression::Compare`] compares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Comparison {
    /// `NFT_CMP_EQ`
    Equal,
    /// `NFT_CMP_NEQ`
    NotEqual,
}

/// `NFT_META_*` keys that the rules use.
pub(crate) mod meta {
    pub(crate) const INPUT_INDEX: u32 = 4;
    pub(crate) const OUTPUT_INDEX: u32 = 5;
    pub(crate) const SOCKET_UID: u32 = 10;
    pub(crate) const FAMILY: u32 = 15;
    pub(crate) const L4_PROTOCOL: u32 = 16;
}

/// `NFT_PAYLOAD_*_HEADER` bases that the rules use.
pub(crate) mod base {
    pub(crate) const NETWORK: u32 = 1;
    pub(crate) const TRANSPORT: u32 = 2;
}

/// What the rules depend on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    /// The proxy's own user: its connections are left alone.
    pub(crate) proxy_uid: u32,
    /// Where other programs' outgoing connections go.
    pub(crate) outbound_port: u16,
    /// Where arriving connections go.
    pub(crate) inbound_port: u16,
    /// Destination ports that leave the pod untouched.
    pub(crate) exclude_outbound_ports: Vec<u16>,
    /// Destination ports that arrive untouched.
    pub(crate) exclude_inbound_ports: Vec<u16>,
    /// Destinations that are reached untouched.
    pub(crate) exclude_outbound_cidrs: Vec<IpNet>,
}

/// All rules of a plan in the order in which the kernel tries them; duplicates in the plan appear once.
pub(crate) fn rules(plan: &Plan) -> Vec<Rule> {
    let mut conditions = vec![Match::SocketUid(plan.proxy_uid), Match::OutputIsLoopback, Match::DestinationIsLocal];
    conditions.extend(unique(plan.exclude_outbound_cidrs.iter().map(IpNet::trunc)).map(Match::DestinationWithin));
    conditions.extend(unique(plan.exclude_outbound_ports.iter().copied()).map(Match::DestinationPort));
    let mut rules = chain_rules(Chain::Output, conditions, plan.outbound_port);

    let mut conditions = vec![Match::InputIsLoopback, Match::DestinationIsNotLocal];
    conditions.extend(unique(plan.exclude_inbound_ports.iter().copied()).map(Match::DestinationPort));
    rules.extend(chain_rules(Chain::Prerouting, conditions, plan.inbound_port));
    rules
}

/// Rules that leave each of `exceptions` alone and redirect all other TCP to `port`.
fn chain_rules(chain: Chain, exceptions: Vec<Match>, port: u16) -> Vec<Rule> {
    let skip = exceptions.into_iter().map(|condition| Rule { chain, condition, verdict: Verdict::Return });
    let redirect = Rule { chain, condition: Match::AnyTcp, verdict: Verdict::Redirect(port) };
    skip.chain([redirect]).collect()
}

fn unique<T: Ord + Copy>(values: impl Iterator<Item = T>) -> impl Iterator<Item = T> {
    let mut values: Vec<T> = values.collect();
    values.sort_unstable();
    values.dedup();
    values.into_iter()
}

/// The whole table as `nft list table inet picket` prints it.
pub(crate) fn text(rules: &[Rule]) -> String {
    let chains: Vec<String> = Chain::ALL.iter().map(|chain| chain_text(*chain, rules)).collect();
    format!("table inet {TABLE} {{\n{}}}\n", chains.join("\n"))
}

fn chain_text(chain: Chain, rules: &[Rule]) -> String {
    let mut out = format!("\tchain {} {{\n\t\t{}\n", chain.name(), chain.declaration());
    for rule in rules.iter().filter(|rule| rule.chain == chain) {
        out.push_str(&format!("\t\t{rule}\n"));
    }
    out.push_str("\t}\n");
    out
}

impl Rule {
    /// The expressions that make the rule, in order.
    pub(crate) fn expressions(&self) -> Vec<Expression> {
        let mut expressions = self.condition.expressions();
        match self.verdict {
            Verdict::Return => expressions.push(Expression::Return),
            Verdict::Redirect(port) => expressions.extend([Expression::Port(port), Expression::Redirect]),
        }
        expressions
    }

    /// Whether the rule needs the kernel's `fib` expression.
    pub(crate) fn needs_fib(&self) -> bool {
        self.expressions().contains(&Expression::DestinationType)
    }

    /// Whether the rule needs the kernel's `redir` expression.
    pub(crate) fn needs_redirect(&self) -> bool {
        self.expressions().contains(&Expression::Redirect)
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.condition {
            Match::SocketUid(uid) => write!(f, "meta skuid {uid}")?,
            Match::OutputIsLoopback => write!(f, "oif \"lo\"")?,
            Match::InputIsLoopback => write!(f, "iif \"lo\"")?,
            Match::DestinationIsLocal => write!(f, "fib daddr type local")?,
            Match::DestinationIsNotLocal => write!(f, "fib daddr type != local")?,
            Match::DestinationPort(port) => write!(f, "tcp dport {port}")?,
            Match::DestinationWithin(net) => write_destination(f, net)?,
            Match::AnyTcp => write!(f, "meta l4proto tcp")?,
        }
        match self.verdict {
            Verdict::Return => write!(f, " return"),
            Verdict::Redirect(port) => write!(f, " redirect to :{port}"),
        }
    }
}

fn write_destination(f: &mut fmt::Formatter<'_>, net: IpNet) -> fmt::Result {
    let (family, word) = if net.addr().is_ipv4() { ("ipv4", "ip") } else { ("ipv6", "ip6") };
    if net.prefix_len() == 0 {
        write!(f, "meta nfproto {family}")
    } else if net.prefix_len() == net.max_prefix_len() {
        write!(f, "{word} daddr {}", net.addr())
    } else {
        write!(f, "{word} daddr {net}")
    }
}

impl Match {
    fn expressions(self) -> Vec<Expression> {
        use Comparison::{Equal, NotEqual};
        let meta_equals = |key, value: &[u8]| vec![Expression::Meta(key), Expression::Compare(Equal, value.to_vec())];
        let local = |comparison| {
            vec![Expression::DestinationType, Expression::Compare(comparison, ROUTE_TYPE_LOCAL.to_ne_bytes().to_vec())]
        };
        match self {
            Self::SocketUid(uid) => meta_equals(meta::SOCKET_UID, &uid.to_ne_bytes()),
            Self::OutputIsLoopback => meta_equals(meta::OUTPUT_INDEX, &LOOPBACK_INDEX.to_ne_bytes()),
            Self::InputIsLoopback => meta_equals(meta::INPUT_INDEX, &LOOPBACK_INDEX.to_ne_bytes()),
            Self::DestinationIsLocal => local(Equal),
            Self::DestinationIsNotLocal => local(NotEqual),
            Self::DestinationPort(port) => {
                let mut expressions = meta_equals(meta::L4_PROTOCOL, &[IPPROTO_TCP]);
                expressions.push(Expression::Payload { base: base::TRANSPORT, offset: 2, length: 2 });
                expressions.push(Expression::Compare(Equal, port.to_be_bytes().to_vec()));
                expressions
            }
            Self::DestinationWithin(net) => destination_expressions(net),
            Self::AnyTcp => meta_equals(meta::L4_PROTOCOL, &[IPPROTO_TCP]),
        }
    }
}

fn destination_expressions(net: IpNet) -> Vec<Expression> {
    // Destination address: offset 16 in the IPv4 header (RFC 791), 24 in the IPv6 header (RFC 8200).
    let (family, offset, length) = if net.addr().is_ipv4() { (NFPROTO_IPV4, 16, 4) } else { (NFPROTO_IPV6, 24, 16) };
    let mut expressions = vec![Expression::Meta(meta::FAMILY), Expression::Compare(Comparison::Equal, vec![family])];
    if net.prefix_len() > 0 {
        expressions.push(Expression::Payload { base: base::NETWORK, offset, length });
        if net.prefix_len() < net.max_prefix_len() {
            expressions.push(Expression::Mask(octets(net.netmask())));
        }
        expressions.push(Expression::Compare(Comparison::Equal, octets(net.network())));
    }
    expressions
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}
