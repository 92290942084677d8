//! The init step: programs nftables so that the pod's TCP passes through the proxy, and exits.
//!
//! Promises: IPv4 and IPv6 change together in one transaction or not at all; running again replaces what an earlier run
//! left; after installation the rules are read back from the kernel and compared; nothing outside the table `inet picket`
//! is touched. UDP is not carried by the proxy and is left alone.
//! Leaves to others: which uid, ports and networks are right for a pod (the injector), and the data path (`run`).

mod rules;
mod netlink;
#[cfg(test)]
mod tests;

use std::fmt;
use std::io::{self, Write};

use ipnet::IpNet;

use netlink::{Found, Needs};
use rules::{Chain, Expression, Plan, Rule};

/// What `picket-proxy redirect` can be told.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// User id of the proxy: its own connections are left alone
    #[arg(long, default_value_t = 15002, value_name = "UID")]
    pub proxy_uid: u32,
    /// Port of the proxy that takes what the pod's programs send
    #[arg(long, default_value_t = 15001, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub outbound_port: u16,
    /// Port of the proxy that takes what arrives at the pod
    #[arg(long, default_value_t = 15006, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub inbound_port: u16,
    /// Port of the proxy's probes and metrics: never redirected
    #[arg(long, default_value_t = 15020, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub admin_port: u16,
    /// Destination ports that leave the pod untouched, separated by commas
    #[arg(long, value_delimiter = ',', value_name = "PORTS")]
    pub exclude_outbound_ports: Vec<u16>,
    /// Ports of the pod that are reached untouched, separated by commas, besides the admin port
    #[arg(long, value_delimiter = ',', value_name = "PORTS")]
    pub exclude_inbound_ports: Vec<u16>,
    /// Networks (address/prefix) that are reached untouched, separated by commas
    #[arg(long, value_delimiter = ',', value_name = "CIDRS")]
    pub exclude_outbound_cidrs: Vec<IpNet>,
    /// Print the rules in nft's syntax and change nothing
    #[arg(long, conflicts_with = "remove")]
    pub dry_run: bool,
    /// Remove the rules, whether they are there or not
    #[arg(long)]
    pub remove: bool,
}

/// What [`run`] did; displays as one sentence for the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Installed {
    /// The rules are in the kernel and were read back: how many.
    Verified {
        /// Rules in both chains.
        rules: usize,
    },
    /// The rules were printed, nothing was changed.
    Printed,
    /// No rule of ours is left.
    Removed,
}

impl fmt::Display for Installed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Verified { rules } => {
                write!(f, "{rules} rules for IPv4 and IPv6 are installed and verified in table inet {}", rules::TABLE)
            }
            Self::Printed => write!(f, "the rules were printed, nothing was changed"),
            Self::Removed => write!(f, "table inet {} is removed", rules::TABLE),
        }
    }
}

/// Why the redirect could not be set up. Unless it says otherwise, nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// With uid 0 every root process of the pod would bypass the mesh.
    #[error("--proxy-uid 0 is refused: every process that runs as root would bypass the mesh")]
    RootUid,
    /// Two listeners of the proxy cannot share a port.
    #[error("{first} and {second} are both {port}: the proxy needs different ports")]
    SamePort {
        /// The option that was looked at.
        first: &'static str,
        /// The option that has the same value.
        second: &'static str,
        /// The value.
        port: u16,
    },
    /// The process may not change this network namespace.
    #[error(
        "no permission to change the nftables of this network namespace: run as root with CAP_NET_ADMIN \
         in the user namespace that owns it"
    )]
    NotPermitted(#[source] netlink::Error),
    /// The kernel lacks a part.
    #[error("the kernel lacks what the redirect needs: {missing}")]
    KernelLacks {
        /// What is missing, with the names that kernel builders know.
        missing: &'static str,
        /// What the kernel refused.
        #[source]
        source: netlink::Error,
    },
    /// Any other refusal or failure of the kernel's interface.
    #[error("programming nftables failed")]
    Netlink(#[source] netlink::Error),
    /// The rules were accepted, but reading them back shows something else.
    #[error("the rules in the kernel are not what was installed: {0}")]
    NotVerified(String),
    /// Standard output could not be written.
    #[error("cannot print the rules")]
    Print(#[source] io::Error),
}

impl Error {
    /// True when the options are to blame: another try without a change is of no use.
    pub fn is_usage(&self) -> bool {
        match self {
            Self::RootUid | Self::SamePort { .. } => true,
            Self::NotPermitted(_)
            | Self::KernelLacks { .. }
            | Self::Netlink(_)
            | Self::NotVerified(_)
            | Self::Print(_) => false,
        }
    }
}

/// Does what `options` say in the network namespace of the calling thread. Blocks for milliseconds.
///
/// # Errors
/// See [`Error`]; the kernel applies a batch as a whole, so only [`Error::NotVerified`] leaves something changed.
pub fn run(options: &Options) -> Result<Installed, Error> {
    if options.remove {
        netlink::apply(&netlink::remove()).map_err(explain)?;
        return Ok(Installed::Removed);
    }
    let rules = rules::rules(&plan(options)?);
    if options.dry_run {
        let mut out = io::stdout().lock();
        out.write_all(rules::text(&rules).as_bytes()).and_then(|()| out.flush()).map_err(Error::Print)?;
        return Ok(Installed::Printed);
    }
    netlink::apply(&netlink::install(&rules)).map_err(explain)?;
    verify(&rules, &netlink::read_back().map_err(explain)?).map_err(Error::NotVerified)?;
    Ok(Installed::Verified { rules: rules.len() })
}

/// Checks the options against each other.
fn plan(options: &Options) -> Result<Plan, Error> {
    if options.proxy_uid == 0 {
        return Err(Error::RootUid);
    }
    let ports = [
        ("--outbound-port", options.outbound_port),
        ("--inbound-port", options.inbound_port),
        ("--admin-port", options.admin_port),
    ];
    for (index, (first, port)) in ports.into_iter().enumerate() {
        if let Some((second, _)) = ports[index + 1..].iter().find(|(_, other)| *other == port) {
            return Err(Error::SamePort { first, second, port });
        }
    }
    let mut exclude_inbound_ports = options.exclude_inbound_ports.clone();
    exclude_inbound_ports.push(options.admin_port);
    Ok(Plan {
        proxy_uid: options.proxy_uid,
        outbound_port: options.outbound_port,
        inbound_port: options.inbound_port,
        exclude_outbound_ports: options.exclude_outbound_ports.clone(),
        exclude_inbound_ports,
        exclude_outbound_cidrs: options.exclude_outbound_cidrs.clone(),
    })
}

/// Compares what was meant with what the kernel has; the error names the first difference.
fn verify(rules: &[Rule], found: &Found) -> Result<(), String> {
    for chain in Chain::ALL {
        let expected = (chain.name().to_owned(), chain.hook(), Chain::PRIORITY, "nat".to_owned());
        if !found.chains.contains(&expected) {
            return Err(format!("chain {} ({}) is missing", chain.name(), chain.declaration()));
        }
    }
    let same = |rule: &Rule, chain: &str, expressions: &[Option<Expression>]| {
        chain == rule.chain.name() && rule.expressions().into_iter().map(Some).eq(expressions.iter().cloned())
    };
    for (index, rule) in rules.iter().enumerate() {
        match found.rules.get(index) {
            Some((chain, expressions)) if same(rule, chain, expressions) => {}
            _ => return Err(format!("rule {} of {} is missing or differs: {rule}", index + 1, rules.len())),
        }
    }
    if found.rules.len() > rules.len() {
        return Err(format!("{} rules were found, {} were installed", found.rules.len(), rules.len()));
    }
    Ok(())
}

/// Turns the kernel's error number into what the user can do about it.
fn explain(error: netlink::Error) -> Error {
    let (cause, needs) = match &error {
        netlink::Error::Message { needs, cause, .. } => (cause, *needs),
        netlink::Error::Socket(cause) | netlink::Error::Batch(cause) => (cause, Needs::Tables),
        netlink::Error::Dump { cause, .. } => (cause, Needs::Rules),
        netlink::Error::Transport(_) | netlink::Error::Malformed => return Error::Netlink(error),
    };
    if cause.kind() == io::ErrorKind::PermissionDenied {
        return Error::NotPermitted(error);
    }
    match rustix::io::Errno::from_io_error(cause) {
        Some(
            rustix::io::Errno::NOENT
            | rustix::io::Errno::OPNOTSUPP
            | rustix::io::Errno::PROTONOSUPPORT
            | rustix::io::Errno::AFNOSUPPORT
            | rustix::io::Errno::INVAL,
        ) => Error::KernelLacks { missing: needs.describe(), source: error },
        Some(_) | None => Error::Netlink(error),
    }
}

impl Needs {
    fn describe(self) -> &'static str {
        match self {
            Self::Tables => "nf_tables with the inet family (CONFIG_NF_TABLES, CONFIG_NF_TABLES_INET)",
            Self::NatChains => "nat chains for inet (CONFIG_NFT_NAT, module nft_chain_nat)",
            Self::Fib => "the fib expression (CONFIG_NFT_FIB_INET, module nft_fib_inet)",
            Self::Redirect => "the redirect expression (CONFIG_NFT_REDIR, module nft_redir)",
            Self::Rules => "nf_tables rules with meta, payload and bitwise expressions (CONFIG_NF_TABLES)",
        }
    }
}
