//! What a publication can publish, and what becomes of it while Tidemark runs: the log has what was done, the lake what
//! Postgres holds. The oracle is Postgres itself, and DuckDB reads the lake.

mod made;
mod members;
mod membership;
mod partitions;
mod rounds;
mod statements;
mod values;
