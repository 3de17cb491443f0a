-- A small shop with the kinds of columns that real ones have, and enough rows to be worth reading.

CREATE TYPE order_status AS ENUM ('placed', 'paid', 'shipped', 'delivered', 'returned');

CREATE TABLE customers (
  id          bigint PRIMARY KEY,
  name        text NOT NULL,
  email       varchar(120) NOT NULL UNIQUE,
  born_on     date,
  credit      numeric(12, 2) NOT NULL DEFAULT 0,
  newsletter  boolean NOT NULL DEFAULT false,
  preferences jsonb NOT NULL DEFAULT '{}',
  notes       text,                            -- long for some: stored out of line (TOAST)
  created_at  timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE products (
  id          integer PRIMARY KEY,
  sku         uuid NOT NULL DEFAULT gen_random_uuid(),
  name        text NOT NULL,
  price       numeric(10, 2) NOT NULL CHECK (price >= 0),
  stock       integer NOT NULL,
  weight_kg   double precision,
  tags        text[] NOT NULL DEFAULT '{}',
  description text NOT NULL,                   -- always long: stored out of line (TOAST)
  updated_at  timestamp(3) NOT NULL DEFAULT localtimestamp
);

CREATE TABLE orders (
  id          bigint PRIMARY KEY,
  customer_id bigint NOT NULL REFERENCES customers ON UPDATE CASCADE,
  status      order_status NOT NULL DEFAULT 'placed',
  total       numeric(12, 2) NOT NULL DEFAULT 0,
  coupons     integer[],
  ship_to     jsonb,
  placed_at   timestamptz NOT NULL DEFAULT now(),
  deliver_at  time
);

CREATE TABLE order_lines (
  order_id    bigint NOT NULL REFERENCES orders ON DELETE CASCADE,
  line_no     integer NOT NULL,
  product_id  integer NOT NULL REFERENCES products,
  quantity    smallint NOT NULL CHECK (quantity > 0),
  unit_price  numeric(10, 2) NOT NULL,
  discount    numeric,                         -- no precision: any number of digits
  PRIMARY KEY (order_id, line_no)
);

CREATE INDEX ON orders (customer_id);
CREATE INDEX ON order_lines (product_id);

-- The generator's own objects. A publication holds tables only, so sequences here stay out of the log.
CREATE SCHEMA traffic;
CREATE SEQUENCE traffic.customer_id START 2001;
CREATE SEQUENCE traffic.order_id START 20001;
CREATE SEQUENCE traffic.stop;

-- Text which does not compress, of about the length asked for.
CREATE FUNCTION traffic.prose(length integer) RETURNS text LANGUAGE sql VOLATILE AS $$
  SELECT string_agg(md5(random()::text), ' ') FROM generate_series(1, length / 33 + 1)
$$;

CREATE FUNCTION traffic.address() RETURNS jsonb LANGUAGE sql VOLATILE AS $$
  SELECT jsonb_build_object(
    'street', (1 + floor(random() * 200))::int || ' Al Wasl Road',
    'city', (ARRAY['Dubai', 'Abu Dhabi', 'Zürich', 'São Paulo', '東京'])[1 + floor(random() * 5)::int],
    'gate', CASE WHEN random() < 0.5 THEN to_jsonb(floor(random() * 9)::int) ELSE 'null'::jsonb END)
$$;

SELECT setseed(0.5);

INSERT INTO customers (id, name, email, born_on, credit, newsletter, preferences, notes, created_at)
SELECT n, 'Customer ' || n || (ARRAY['', ' Łukasz', ' الراشد', ' O''Hara'])[1 + n % 4],
       'customer' || n || '@example.com',
       CASE WHEN n % 7 > 0 THEN date '1950-01-01' + (random() * 20000)::int END,
       round((random() * 1000)::numeric, 2), n % 3 = 0,
       jsonb_build_object('language', (ARRAY['en', 'ar', 'pl'])[1 + n % 3], 'sizes', jsonb_build_array(n % 5, 'XL')),
       CASE WHEN n % 10 = 0 THEN traffic.prose(5000) WHEN n % 2 = 0 THEN 'calls back' END,
       now() - random() * interval '900 days'
FROM generate_series(1, 4000) AS n;

INSERT INTO products (id, name, price, stock, weight_kg, tags, description)
SELECT n, 'Product ' || n, round((1 + random() * 300)::numeric, 2), 1000000,
       CASE WHEN n % 9 > 0 THEN floor(random() * 80) / 8 END,
       (ARRAY['{}', '{new}', '{sale,"last one"}', '{"with, comma","",NULL}'])[1 + n % 4]::text[],
       traffic.prose(6000)
FROM generate_series(1, 300) AS n;

INSERT INTO orders (id, customer_id, status, coupons, ship_to, placed_at, deliver_at)
SELECT n, 1 + n % 4000, (enum_range(NULL::order_status))[1 + n % 5],
       CASE WHEN n % 4 = 0 THEN ARRAY[n % 100, NULL, n % 7] END,
       CASE WHEN n % 5 > 0 THEN traffic.address() END,
       now() - random() * interval '400 days', make_time(8 + n % 12, n % 60, 0)
FROM generate_series(1, 20000) AS n;

INSERT INTO order_lines (order_id, line_no, product_id, quantity, unit_price, discount)
SELECT o.id, l, p.id, 1 + (o.id + l) % 9, p.price,
       CASE WHEN l = 3 THEN (p.price / 7)::numeric END
FROM orders AS o, generate_series(1, 1 + o.id % 4) AS l, products AS p
WHERE p.id = 1 + (o.id * 7 + l * 13) % 300;

UPDATE orders SET total = t.total
FROM (SELECT order_id, round(sum(quantity * unit_price - coalesce(discount, 0)), 2) AS total
      FROM order_lines GROUP BY order_id) AS t
WHERE t.order_id = orders.id;

ANALYZE;
