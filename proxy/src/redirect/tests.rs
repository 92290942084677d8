//! The redirect against the real kernel, each test in network namespaces of its own (needs root, nft, iproute2), and the
//! pure parts beside it.

use std::fs::File;
use std::io::Read;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use clap::Parser;
use rustix::thread::{CapabilitySet, CapabilitySets, LinkNameSpaceType};

use super::rules::{self, Rule};
use super::{Error, Installed, Options, explain, netlink, plan, run, verify};

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    options: Options,
}

fn options(arguments: &str) -> Options {
    Cli::try_parse_from(["redirect"].into_iter().chain(arguments.split_whitespace())).expect("valid options").options
}

fn rules_for(arguments: &str) -> Vec<Rule> {
    rules::rules(&plan(&options(arguments)).expect("a valid plan"))
}

const ALL_OPTIONS: &str = "--exclude-outbound-ports 25,22,25 --exclude-inbound-ports 9000 \
    --exclude-outbound-cidrs 10.9.1.7/12,192.0.2.1/32,fd01::/17,2001:db8::1/128,198.18.0.0/15";

/// A network namespace that lives as long as the process which holds it.
struct Namespace(Child);

impl Namespace {
    fn new() -> Self {
        let mut holder = Command::new("unshare")
            .args(["--net", "sh", "-c", "ip link set lo up && echo ready && exec sleep infinity"])
            .stdout(Stdio::piped())
            .spawn()
            .expect("unshare starts (these tests need root and util-linux)");
        let mut ready = [0; 5];
        holder.stdout.take().unwrap().read_exact(&mut ready).expect("a network namespace (this test needs root)");
        Self(holder)
    }

    /// Runs `job` on a thread inside the namespace.
    fn inside<T: Send>(&self, job: impl FnOnce() -> T + Send) -> T {
        let path = format!("/proc/{}/ns/net", self.0.id());
        std::thread::scope(|scope| {
            let job = || {
                let file = File::open(path).unwrap();
                rustix::thread::move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
                job()
            };
            scope.spawn(job).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn sh(script: &str) -> String {
    let output = Command::new("sh").args(["-ec", script]).output().unwrap();
    assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Two namespaces joined by a veth pair; the first one is the pod.
fn pod_and_neighbour() -> (Namespace, Namespace) {
    let (pod, neighbour) = (Namespace::new(), Namespace::new());
    sh(&format!("ip link add pod0 netns {} type veth peer name peer0 netns {}", pod.0.id(), neighbour.0.id()));
    for (namespace, device, host) in [(&pod, "pod0", 2), (&neighbour, "peer0", 3)] {
        namespace.inside(|| {
            sh(&format!(
                "ip link set {device} up
                 ip address add 192.0.2.{host}/24 dev {device}
                 ip address add 2001:db8::{host}/64 dev {device} nodad
                 ip route add default dev {device}
                 ip -6 route add default dev {device}"
            ))
        });
    }
    (pod, neighbour)
}

/// Accepts one connection and gives the address that was dialled before the redirect.
fn original_destination(listener: &TcpListener) -> SocketAddr {
    let (stream, _) = listener.accept().unwrap();
    let socket = socket2::SockRef::from(&stream);
    let address =
        if stream.local_addr().unwrap().is_ipv4() { socket.original_dst_v4() } else { socket.original_dst_v6() };
    address.unwrap().as_socket().unwrap()
}

fn connect(address: &str) -> std::io::Result<TcpStream> {
    TcpStream::connect_timeout(&address.parse().unwrap(), Duration::from_secs(5))
}

#[test]
fn what_nft_lists_is_what_the_dry_run_prints() {
    for arguments in ["", ALL_OPTIONS] {
        let listed = Namespace::new().inside(|| {
            run(&options(arguments)).unwrap();
            sh("nft list ruleset")
        });
        assert_eq!(listed, rules::text(&rules_for(arguments)), "{arguments}");
    }
}

#[test]
fn installing_again_replaces_and_removing_leaves_nothing() {
    Namespace::new().inside(|| {
        assert_eq!(run(&options(ALL_OPTIONS)).unwrap(), Installed::Verified { rules: rules_for(ALL_OPTIONS).len() });
        sh("nft add table inet other");
        run(&options("--proxy-uid 7")).unwrap();
        run(&options("--proxy-uid 7")).unwrap();
        let listed = sh("nft list table inet picket");
        assert_eq!(listed, rules::text(&rules_for("--proxy-uid 7")));
        assert_eq!(run(&options("--remove")).unwrap(), Installed::Removed);
        assert_eq!(run(&options("--remove")).unwrap(), Installed::Removed, "removing nothing is no error");
        assert_eq!(sh("nft list ruleset"), "table inet other {\n}\n", "other tables stay");
    });
}

#[test]
fn a_dry_run_changes_nothing() {
    let listed = Namespace::new().inside(|| {
        assert_eq!(run(&options("--dry-run")).unwrap(), Installed::Printed);
        sh("nft list ruleset")
    });
    assert_eq!(listed, "");
}

#[test]
fn outgoing_tcp_of_both_families_is_redirected_and_exceptions_are_not() {
    let (pod, neighbour) = pod_and_neighbour();
    let served: Vec<TcpListener> = neighbour.inside(|| {
        ["192.0.2.3:25", "192.0.2.3:80", "[2001:db8::3]:80"].map(|at| TcpListener::bind(at).unwrap()).into()
    });
    pod.inside(|| {
        run(&options("--proxy-uid 15002 --exclude-outbound-ports 25")).unwrap();
        let proxy4 = TcpListener::bind("127.0.0.1:15001").unwrap();
        let proxy6 = TcpListener::bind("[::1]:15001").unwrap();
        for (proxy, dialled) in [(&proxy4, "10.96.0.7:80"), (&proxy6, "[fd00:96::7]:443"), (&proxy4, "192.0.2.3:80")] {
            let _client = connect(dialled).unwrap();
            assert_eq!(original_destination(proxy), dialled.parse().unwrap());
        }
        let _excluded = connect("192.0.2.3:25").unwrap();
        served[0].accept().expect("an excluded port is reached directly");
        let local = TcpListener::bind("192.0.2.2:8080").unwrap();
        let _own = connect("192.0.2.2:8080").unwrap();
        local.accept().expect("the pod's own address is reached directly");
    });
    pod.inside(|| {
        // Only this thread changes its user: it is the proxy now.
        rustix::thread::set_thread_uid(rustix::process::Uid::from_raw(15002)).unwrap();
        for (listener, dialled) in [(&served[1], "192.0.2.3:80"), (&served[2], "[2001:db8::3]:80")] {
            let _client = connect(dialled).unwrap();
            listener.accept().expect("the proxy's own connections pass");
        }
    });
}

#[test]
fn arriving_tcp_of_both_families_is_redirected_and_exceptions_are_not() {
    let (pod, neighbour) = pod_and_neighbour();
    let (proxy, admin, app) = pod.inside(|| {
        run(&options("--exclude-inbound-ports 9000")).unwrap();
        let proxy = ["0.0.0.0:15006", "[2001:db8::2]:15006"].map(|at| TcpListener::bind(at).unwrap());
        (proxy, TcpListener::bind("[::]:15020").unwrap(), TcpListener::bind("0.0.0.0:9000").unwrap())
    });
    neighbour.inside(|| {
        for (listener, dialled) in [(&proxy[0], "192.0.2.2:8080"), (&proxy[1], "[2001:db8::2]:8080")] {
            let _client = connect(dialled).unwrap();
            assert_eq!(original_destination(listener), dialled.parse().unwrap());
        }
        let _probe = connect("192.0.2.2:15020").unwrap();
        admin.accept().expect("the admin port is reached directly");
        let _excluded = connect("192.0.2.2:9000").unwrap();
        app.accept().expect("an excluded port is reached directly");
    });
}

#[test]
fn without_the_capability_the_error_says_so() {
    let error = Namespace::new().inside(|| {
        let none = CapabilitySets {
            effective: CapabilitySet::empty(),
            permitted: CapabilitySet::empty(),
            inheritable: CapabilitySet::empty(),
        };
        rustix::thread::set_capabilities(None, none).unwrap();
        run(&options("")).unwrap_err()
    });
    assert!(matches!(error, Error::NotPermitted(_)), "{error:?}");
    assert!(error.to_string().contains("CAP_NET_ADMIN"), "{error}");
}

#[test]
fn a_refused_message_is_named_and_nothing_is_left() {
    Namespace::new().inside(|| {
        let mut messages = netlink::install(&rules_for(""));
        // Without its chains the first rule has nowhere to go: the kernel answers ENOENT for that message.
        messages.retain(|message| !message.command.starts_with("add chain"));
        let error = explain(netlink::apply(&messages).unwrap_err());
        let Error::KernelLacks { source, .. } = &error else { panic!("{error:?}") };
        assert_eq!(source.to_string(), "the kernel refused `add rule inet picket output meta skuid 15002 return`");
        assert_eq!(sh("nft list ruleset"), "");
    });
}

#[test]
fn reading_back_notices_a_missing_and_a_foreign_rule() {
    Namespace::new().inside(|| {
        let rules = rules_for("");
        run(&options("")).unwrap();
        verify(&rules, &netlink::read_back().unwrap()).unwrap();

        sh("nft add rule inet picket output tcp dport 81 counter return");
        let foreign = verify(&rules, &netlink::read_back().unwrap()).unwrap_err();
        assert!(foreign.contains("rule 5 of 8"), "{foreign}");

        run(&options("")).unwrap();
        sh("nft flush chain inet picket prerouting");
        let missing = verify(&rules, &netlink::read_back().unwrap()).unwrap_err();
        assert!(missing.ends_with("rule 5 of 8 is missing or differs: iif \"lo\" return"), "{missing}");

        sh("nft delete chain inet picket prerouting");
        let chain = verify(&rules, &netlink::read_back().unwrap()).unwrap_err();
        assert!(chain.starts_with("chain prerouting"), "{chain}");
    });
}

#[test]
fn root_as_the_proxy_and_shared_ports_are_refused() {
    assert!(matches!(run(&options("--proxy-uid 0")), Err(Error::RootUid)));
    let same = run(&options("--inbound-port 15001")).unwrap_err().to_string();
    assert_eq!(same, "--outbound-port and --inbound-port are both 15001: the proxy needs different ports");
}

#[test]
fn a_network_of_all_addresses_needs_no_mask() {
    let text = rules::text(&rules_for("--exclude-outbound-cidrs 0.0.0.0/0"));
    assert!(text.contains("\t\tmeta nfproto ipv4 return\n"), "{text}");
}
