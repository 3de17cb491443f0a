"""A day of Tidemark's lake as the condition of what follows, in Airflow.

Two ways, of which one is enough:

* `wait_for_day` runs `tidemark wait` where the connector's configuration and the lake are in reach. It leaves with 0 as
  soon as the whole day is published, and with 1 when a table is missing from it, so what follows never reads a day
  that lacks one.
* `day_is_in_the_bucket` needs nothing of Tidemark but the right to look at the bucket: a day is complete when the database's
  own manifest is there, and a table's when its `_SUCCESS` is.

Days end at `[cut] at` in `[cut] time_zone`: the schedule has the same, and the day that has ended is the one before.

Airflow 3.3.2 with its standard and amazon providers loads this file; more of it was not run.
"""

import pendulum
from airflow.providers.amazon.aws.sensors.s3 import S3KeySensor
from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import DAG

# The day that the interval covers, as Tidemark calls it.
DS = "{{ data_interval_start.in_timezone('Asia/Dubai').to_date_string() }}"
LAKE = "s3://bank-lake/tidemark"
NAME, TABLE = "shop", "public.orders"

with DAG(
    dag_id="orders_daily",
    schedule="@daily",
    start_date=pendulum.datetime(2026, 11, 1, tz="Asia/Dubai"),
    catchup=False,
    max_active_runs=1,
) as dag:
    wait_for_day = BashOperator(
        task_id="wait_for_day",
        bash_command=f"tidemark wait --config /etc/tidemark/connector.toml --ds {DS} --timeout 2h",
        # What Tidemark says in the end is what it said: a missing table does not come by itself.
        retries=0,
    )

    day_is_in_the_bucket = S3KeySensor(
        task_id="day_is_in_the_bucket",
        bucket_key=[
            f"{LAKE}/cuts/{NAME}/ds={DS}.json",
            f"{LAKE}/snapshots/{NAME}/{TABLE}/ds={DS}/_SUCCESS",
        ],
        poke_interval=30,
        timeout=2 * 60 * 60,
        # Gives its worker back between two looks.
        mode="reschedule",
    )

    # Your own work instead: all that it reads stays as it is.
    report = BashOperator(task_id="report", bash_command=f"echo reading {LAKE}/snapshots/{NAME}/{TABLE}/ds={DS}")

    [wait_for_day, day_is_in_the_bucket] >> report
