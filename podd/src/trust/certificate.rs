//! Making, signing and reading certificates.

use std::net::IpAddr;
use std::path::Path;

use jiff::Timestamp;
use rand::TryRngCore;
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData, SanType,
    SerialNumber,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use sha2::{Digest, Sha256};
use time::OffsetDateTime;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{TrustError, Validity, files, validity};

/// Years for which the CA is good.
const CA_YEARS: u8 = 10;
/// Years for which a host's certificate is good.
const HOST_YEARS: u8 = 1;
/// An uncompressed P-256 point.
const P256_POINT: usize = 65;

/// The right to sign for the fleet.
pub(super) struct Authority {
    /// For rcgen only: its bytes differ from `ca.pem`'s, its name and key do not.
    issuer: Certificate,
    key: KeyPair,
    until: Timestamp,
}

/// Makes a CA: certificate and key as PEM.
pub(super) fn make_ca(now: Timestamp) -> Result<(String, String), TrustError> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let mut params = CertificateParams::default();
    // A name of its own: two fleets' CAs are told apart by it before a signature is looked at.
    params.distinguished_name = name(&format!("pods {}", hex(&random::<8>()?)));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    set_dates(&mut params, validity(now, CA_YEARS))?;
    Ok((params.self_signed(&key)?.pem(), key.serialize_pem()))
}

/// Makes a host's key.
pub(super) fn make_key() -> Result<KeyPair, TrustError> {
    Ok(KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?)
}

/// Asks for a certificate: proves possession of the key, as PEM.
pub(super) fn make_request(key: &KeyPair, host: &str) -> Result<String, TrustError> {
    let mut params = CertificateParams::new(vec![host.to_owned()])?;
    params.distinguished_name = name(host);
    Ok(params.serialize_request(key)?.pem()?)
}

/// The key of a request whose signature is right. Whatever else it asks for is not looked at.
pub(super) fn requested_key(pem: &str) -> Result<rcgen::PublicKey, String> {
    let request = CertificateSigningRequestParams::from_pem(pem).map_err(|error| error.to_string())?;
    let key = request.public_key;
    if key.algorithm() != &PKCS_ECDSA_P256_SHA256 || key.der_bytes().len() != P256_POINT {
        return Err("the key is not an ECDSA P-256 key".to_owned());
    }
    Ok(key)
}

impl Authority {
    pub(super) fn load(pki: &Path) -> Result<Self, TrustError> {
        let ca = files::need(pki, files::CA)?;
        let key = files::read_key(pki, files::CA_KEY)?.ok_or(TrustError::NotAuthority)?;
        let key = KeyPair::from_pem(&key)
            .map_err(|error| TrustError::damaged(&pki.join(files::CA_KEY), error.to_string()))?;
        let path = pki.join(files::CA);
        let facts = Facts::of_pem(&ca).map_err(|why| TrustError::damaged(&path, why))?;
        if facts.public_key != key.public_key_der() {
            return Err(TrustError::damaged(&path, "its key is not the one in ca.key"));
        }
        let issuer = CertificateParams::from_ca_cert_pem(&ca)?.self_signed(&key)?;
        Ok(Self { issuer, key, until: facts.validity.not_after })
    }

    /// A host's certificate as PEM: name, address and nothing else, never longer than the CA's own.
    pub(super) fn sign(
        &self,
        key: &impl PublicKeyData,
        host: &str,
        address: IpAddr,
        now: Timestamp,
    ) -> Result<String, TrustError> {
        if now >= self.until {
            return Err(TrustError::Expired { whose: "the fleet's CA".to_owned(), date: self.until, now });
        }
        let mut dates = validity(now, HOST_YEARS);
        dates.not_after = dates.not_after.min(self.until);
        let mut params = CertificateParams::new(vec![host.to_owned()])?;
        params.subject_alt_names.push(SanType::IpAddress(address));
        params.distinguished_name = name(host);
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        set_dates(&mut params, dates)?;
        Ok(params.signed_by(key, &self.issuer, &self.key)?.pem())
    }
}

/// What a certificate says.
pub(super) struct Facts {
    /// Its only DNS name, if that is also its common name.
    pub(super) host: Option<String>,
    pub(super) validity: Validity,
    /// SubjectPublicKeyInfo as DER.
    pub(super) public_key: Vec<u8>,
}

impl Facts {
    pub(super) fn of_pem(pem: &str) -> Result<Self, String> {
        Self::of_der(&der_of(pem)?)
    }

    pub(super) fn of_der(der: &[u8]) -> Result<Self, String> {
        let certificate = parse(der)?;
        let second = |time: i64| Timestamp::from_second(time).map_err(|error| error.to_string());
        Ok(Self {
            host: host_in(&certificate),
            validity: Validity {
                not_before: second(certificate.validity().not_before.timestamp())?,
                not_after: second(certificate.validity().not_after.timestamp())?,
            },
            public_key: certificate.public_key().raw.to_vec(),
        })
    }
}

/// The CA has signed this certificate (dates are not looked at).
pub(super) fn issued_by(certificate: &[u8], ca: &[u8]) -> Result<bool, String> {
    let (certificate, ca) = (parse(certificate)?, parse(ca)?);
    Ok(certificate.issuer() == ca.subject() && certificate.verify_signature(Some(ca.public_key())).is_ok())
}

pub(super) fn der_of(pem: &str) -> Result<CertificateDer<'static>, String> {
    CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|error| format!("no certificate in it ({error})"))
}

/// SHA-256.
pub(super) fn digest(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

pub(super) fn random<const N: usize>() -> Result<[u8; N], TrustError> {
    let mut bytes = [0; N];
    rand::rngs::OsRng.try_fill_bytes(&mut bytes).map_err(|error| TrustError::Random(error.to_string()))?;
    Ok(bytes)
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn parse(der: &[u8]) -> Result<X509Certificate<'_>, String> {
    match X509Certificate::from_der(der) {
        Ok(([], certificate)) => Ok(certificate),
        Ok(_) => Err("there is more after the certificate".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

fn host_in(certificate: &X509Certificate<'_>) -> Option<String> {
    let san = certificate.subject_alternative_name().ok()??;
    let mut names = san.value.general_names.iter().filter_map(|name| match name {
        GeneralName::DNSName(name) => Some(*name),
        _ => None,
    });
    let host = names.next().filter(|_| names.next().is_none())?;
    let common = certificate.subject().iter_common_name().next()?.as_str().ok()?;
    (common == host).then(|| host.to_owned())
}

fn name(common: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common);
    name
}

fn set_dates(params: &mut CertificateParams, dates: Validity) -> Result<(), TrustError> {
    let date = |at: Timestamp| {
        // A jiff timestamp is always within the years -9999 to 9999, which are the time crate's, too.
        OffsetDateTime::from_unix_timestamp(at.as_second()).map_err(|_| TrustError::Clock { now: at })
    };
    params.not_before = date(dates.not_before)?;
    params.not_after = date(dates.not_after)?;
    // rcgen's default is a hash of the key, which a renewal keeps. The top bit stays clear: serials are positive.
    let mut serial = random::<16>()?;
    serial[0] = serial[0] & 0x7f | 0x40;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    Ok(())
}
