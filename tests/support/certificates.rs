//! Certificates of an authority of one test's own, made by the command `openssl`.

#![allow(dead_code)] // Each test binary uses a part.

use super::new_directory;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// An authority, and the files that it signed: `NAME.pem` and `NAME.key`.
pub(crate) struct Authority {
    dir: PathBuf,
}

const CONFIG: &str = "\
[ca]
default_ca = own
[own]
new_certs_dir = .
database = index
rand_serial = yes
unique_subject = no
default_md = sha256
policy = any
copy_extensions = copy
[any]
commonName = supplied
";

impl Authority {
    pub(crate) fn new() -> Self {
        let dir = new_directory("certificates");
        fs::write(dir.join("index"), "").unwrap();
        fs::write(dir.join("config"), CONFIG).unwrap();
        let authority = Self { dir };
        authority.openssl(
            "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes \
             -keyout ca.key -out ca.pem -days 2 -subj /CN=authority",
        );
        authority
    }

    /// Signs a certificate for that name, such as `IP:127.0.0.1` or `DNS:elsewhere`.
    pub(crate) fn sign(&self, file: &str, name: &str) {
        self.sign_until(file, name, "20990101000000Z");
    }

    /// Signs one that has expired.
    pub(crate) fn sign_expired(&self, file: &str, name: &str) {
        self.sign_until(file, name, "20210101000000Z");
    }

    fn sign_until(&self, file: &str, name: &str, end: &str) {
        self.openssl(&format!(
            "req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout {file}.key \
             -out {file}.csr -subj /CN={file} -addext subjectAltName={name}"
        ));
        self.openssl(&format!(
            "ca -batch -config config -cert ca.pem -keyfile ca.key -in {file}.csr -out {file}.pem \
             -startdate 20200101000000Z -enddate {end} -notext"
        ));
    }

    fn openssl(&self, arguments: &str) {
        let done = Command::new("openssl")
            .args(arguments.split_whitespace())
            .current_dir(&self.dir)
            .stdin(Stdio::null())
            .output()
            .expect("openssl runs (scripts/install installs it)");
        let said = String::from_utf8_lossy(&done.stderr);
        assert!(done.status.success(), "openssl {arguments}: {said}");
    }

    pub(crate) fn file(&self, name: &str) -> String {
        self.dir.join(name).to_string_lossy().into_owned()
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }
}

impl Drop for Authority {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.dir).ok();
    }
}
