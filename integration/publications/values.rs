//! Values as large as Postgres has them.

use crate::support::Scene;

#[tokio::test(flavor = "multi_thread")]
async fn a_value_too_large_for_the_log_is_a_dead_letter_and_stops_nothing() {
    const TABLES: &str = "
        CREATE TABLE large (id int PRIMARY KEY, big text); CREATE TABLE other (id int PRIMARY KEY, note text);
        ALTER TABLE large ALTER big SET STORAGE EXTERNAL;
        INSERT INTO large VALUES (1, 'small'), (2, repeat('y', 3000000));
        CREATE PUBLICATION tidemark_shop FOR TABLE large, other;";
    let server = crate::support::Postgres::start().await;
    let mut scene =
        Scene::on(server, TABLES, |connector| connector.set("log.embedded", "record_bytes_max", 2_000_000))
            .await;
    scene
        .sql(
            "INSERT INTO large VALUES (3, repeat('z', 2500000)); INSERT INTO other VALUES (1, 'goes on');
             UPDATE large SET big = repeat('x', 1000000) WHERE id = 1; UPDATE large SET big = 'small again' WHERE id = 2",
        )
        .await;
    let ds = scene.cut().await;
    scene.same(&ds, "other", "id, note").await;
    scene.same_where(&ds, "large", "id, md5(big)", "id <> 3").await;
    let dead = scene.connector.records("shop.dead-letters").await;
    let in_stream =
        dead.iter().find(|letter| letter.value["op"] == "c").expect("a dead letter of the insert");
    assert!(in_stream.value["reason"].as_str().unwrap().contains("2000000"), "{}", in_stream.value["reason"]);
    assert_eq!(in_stream.value["new"]["big"]["bytes"], 2_500_000);
    assert!(in_stream.value.to_string().len() < 10_000);
}
