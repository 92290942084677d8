//! A small network of pods: network namespaces joined by a bridge in a namespace of its own.
//!
//! Promises: no namespace has a name on the machine. Each is held by a process that dies with the thread which created it,
//! so that nothing is left behind even by SIGKILL. Works as root and as the root of a user namespace.
//! Leaves to others: what runs in a pod. Mounts, processes and files are shared with the caller.
//!
//! Create a [`Net`] on a thread that lives as long as the network is needed (the kernel's parent-death signal follows the
//! creating thread, prctl(2) `PR_SET_PDEATHSIG`).

use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsFd;
use std::process::{Child, Command, Stdio};
use std::thread::JoinHandle;

use anyhow::{Context, Result, bail, ensure};
use rustix::thread::LinkNameSpaceType;

use crate::process::run;

/// Address of the link namespace, where collectors and other things outside the mesh live. Default gateway of all pods.
pub const LINK_IPV4: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 1);
/// As [`LINK_IPV4`].
pub const LINK_IPV6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x244, 0, 0, 0, 0, 0, 1);

/// One network namespace, held by a sleeping process until the value is dropped.
#[derive(Debug)]
pub struct Namespace {
    holder: Child,
}

impl Namespace {
    /// Makes a namespace in which only the loopback device is up.
    ///
    /// # Errors
    /// Without the privilege to make one, or without util-linux and iproute2.
    pub fn new() -> Result<Self> {
        let script = "ip link set lo up && echo ready && exec sleep infinity";
        let mut holder = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "unshare", "--net", "sh", "-c", script])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot run setpriv (Debian packages util-linux and iproute2)")?;
        let mut stdout = holder.stdout.take().expect("stdout is piped");
        let namespace = Self { holder };
        let mut ready = [0; 6];
        stdout
            .read_exact(&mut ready)
            .context("cannot make a network namespace: run as root or inside a user namespace")?;
        Ok(namespace)
    }

    /// Process id that holds the namespace: `nsenter --target PID --net`.
    pub fn pid(&self) -> u32 {
        self.holder.id()
    }

    fn path(&self) -> String {
        format!("/proc/{}/ns/net", self.pid())
    }

    /// A command that runs inside the namespace as `uid` and the group of the same number, and dies with its parent
    /// thread. Uid 0 keeps its capabilities. Standard input is empty.
    pub fn command(&self, uid: u32, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path())).args(["--", "setpriv", "--pdeathsig", "KILL"]);
        if uid != 0 {
            command.args([format!("--reuid={uid}"), format!("--regid={uid}"), "--clear-groups".to_owned()]);
        }
        command.arg("--").arg(program).stdin(Stdio::null());
        command
    }

    /// Runs `job` on a new thread inside the namespace and gives what it returns: sockets that it opens stay there.
    ///
    /// # Errors
    /// When the namespace cannot be entered or `job` fails.
    pub fn inside<T: Send>(&self, job: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let file = File::open(self.path()).context("the namespace is gone")?;
        std::thread::scope(|scope| {
            let entered = || {
                rustix::thread::move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))
                    .context("cannot enter the network namespace")?;
                job()
            };
            scope.spawn(entered).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// As [`Self::inside`], on a thread that goes on; the sockets outlive the value, the namespace may not.
    ///
    /// # Errors
    /// When the namespace cannot be entered; what `job` returns is the thread's.
    pub fn spawn<T: Send + 'static>(
        &self,
        job: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<JoinHandle<Result<T>>> {
        let file = File::open(self.path()).context("the namespace is gone")?;
        Ok(std::thread::spawn(move || {
            rustix::thread::move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))
                .context("cannot enter the network namespace")?;
            job()
        }))
    }

    fn script(&self, script: &str) -> Result<()> {
        run(self.command(0, "sh").args(["-ec", script]))?;
        Ok(())
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // It may be gone already; both calls are harmless then.
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

/// One pod: a namespace with one device on the link, an IPv4 and an IPv6 address.
#[derive(Debug)]
pub struct Pod {
    /// Its name, as records should show it.
    pub name: String,
    /// 10.244.0.x
    pub ipv4: Ipv4Addr,
    /// fd00:244::x
    pub ipv6: Ipv6Addr,
    /// Where it lives.
    pub namespace: Namespace,
}

impl Pod {
    /// [`Namespace::command`] of the pod's namespace.
    pub fn command(&self, uid: u32, program: impl AsRef<OsStr>) -> Command {
        self.namespace.command(uid, program)
    }

    /// Both addresses, IPv4 first.
    pub fn addresses(&self) -> [IpAddr; 2] {
        [self.ipv4.into(), self.ipv6.into()]
    }
}

/// The link that joins pods.
#[derive(Debug)]
pub struct Net {
    /// The namespace of the bridge: what crosses between pods is seen here.
    pub link: Namespace,
    pods: u8,
}

impl Net {
    /// Makes the link without pods. Its addresses are [`LINK_IPV4`] and [`LINK_IPV6`].
    ///
    /// # Errors
    /// As [`Namespace::new`], or when the kernel has no bridge device.
    pub fn new() -> Result<Self> {
        let link = Namespace::new()?;
        link.script(&format!(
            "ip link add mesh0 type bridge
             ip link set mesh0 up
             ip address add {LINK_IPV4}/24 dev mesh0
             ip address add {LINK_IPV6}/64 dev mesh0 nodad"
        ))?;
        Ok(Self { link, pods: 0 })
    }

    /// Adds a pod. Service addresses (10.96.0.0/16, fd00:96::/112) have a route, but nobody answers there.
    ///
    /// # Errors
    /// As [`Namespace::new`], and after 250 pods.
    pub fn pod(&mut self, name: &str) -> Result<Pod> {
        ensure!(!name.is_empty(), "a pod needs a name");
        let Some(number) = self.pods.checked_add(2).filter(|number| *number < 252) else {
            bail!("a link has room for 250 pods");
        };
        let namespace = Namespace::new()?;
        let ipv4 = Ipv4Addr::new(10, 244, 0, number);
        let ipv6 = Ipv6Addr::new(0xfd00, 0x244, 0, 0, 0, 0, 0, number.into());
        let device = format!("pod{number}");
        self.link.script(&format!(
            "ip link add {device} type veth peer name eth0 netns {}
             ip link set {device} master mesh0 up",
            namespace.pid()
        ))?;
        namespace.script(&format!(
            "ip link set eth0 up
             ip address add {ipv4}/24 dev eth0
             ip address add {ipv6}/64 dev eth0 nodad
             ip route add default via {LINK_IPV4}
             ip -6 route add default via {LINK_IPV6}"
        ))?;
        self.pods += 1;
        Ok(Pod { name: name.to_owned(), ipv4, ipv6, namespace })
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::{SocketAddr, TcpListener, TcpStream};
    use std::time::Duration;

    use super::*;
    use crate::until;

    #[test]
    fn pods_reach_each_other_on_both_families_and_vanish_with_the_value() {
        let mut net = Net::new().unwrap();
        let (one, two) = (net.pod("one").unwrap(), net.pod("two").unwrap());
        for address in two.addresses() {
            let listener = two.namespace.inside(|| Ok(TcpListener::bind((address, 0))?)).unwrap();
            let at: SocketAddr = listener.local_addr().unwrap();
            let mut stream =
                one.namespace.inside(|| Ok(TcpStream::connect_timeout(&at, Duration::from_secs(5))?)).unwrap();
            stream.write_all(b"hello").unwrap();
            let mut received = [0; 5];
            listener.accept().unwrap().0.read_exact(&mut received).unwrap();
            assert_eq!(&received, b"hello");
        }
        let holder = format!("/proc/{}", one.namespace.pid());
        drop(one);
        until("the holder's end", Duration::from_secs(5), || {
            Ok((!std::path::Path::new(&holder).exists()).then_some(()))
        })
        .unwrap();
    }

    #[test]
    fn a_command_runs_as_the_given_user_inside_the_pod() {
        let mut net = Net::new().unwrap();
        let pod = net.pod("one").unwrap();
        let script = "id -u; grep CapEff /proc/self/status; ip -o -4 address show dev eth0";
        let output = run(pod.command(15002, "sh").args(["-c", script])).unwrap();
        assert!(output.starts_with("15002\nCapEff:\t0000000000000000\n"), "{output}");
        assert!(output.contains("10.244.0.2/24"), "{output}");
    }
}
