//! What an envelope looks like, and that it reads back as the change it was made of.

mod fixture;
mod oracle;
mod records;
mod robust;
mod types;
