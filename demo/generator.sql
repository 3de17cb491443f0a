-- Writes to the shop, a few hundred transactions a second, until told to stop:
--
--   CALL traffic.run(1);                  this session runs the customers with odd ids; 0: the even ones
--   SELECT nextval('traffic.stop');       every running session ends after its transaction
--   SELECT setval('traffic.stop', 1, false);    they may run again
--
-- Two sessions make transactions that interleave in the WAL. They share no customers and no orders, and take at
-- most one product each, last: so they never deadlock.

CREATE FUNCTION traffic.any_customer(side integer) RETURNS bigint LANGUAGE sql VOLATILE AS $$
  SELECT id FROM customers
  WHERE id >= (SELECT floor(random() * 2 * last_value)::bigint FROM traffic.customer_id) AND id % 2 = side
  ORDER BY id LIMIT 1
$$;

CREATE FUNCTION traffic.any_order(side integer) RETURNS bigint LANGUAGE sql VOLATILE AS $$
  SELECT id FROM orders
  WHERE id >= (SELECT floor(random() * last_value)::bigint FROM traffic.order_id) AND customer_id % 2 = side
  ORDER BY id LIMIT 1
$$;

-- One customer, one order, several lines, the order's total and a product's stock: five tables' worth of rows.
CREATE PROCEDURE traffic.place_order(side integer) LANGUAGE plpgsql AS $$
DECLARE
  new_order bigint := nextval('traffic.order_id');
  buyer bigint := (SELECT traffic.any_customer(side));
  chosen integer := 1 + floor(random() * 300);
BEGIN
  IF buyer IS NULL OR random() < 0.2 THEN
    buyer := nextval('traffic.customer_id') * 2 + side;
    INSERT INTO customers (id, name, email, credit, notes)
    VALUES (buyer, 'Newcomer ' || buyer, 'newcomer' || buyer || '@example.com', round((random() * 99)::numeric, 2),
            CASE WHEN random() < 0.3 THEN traffic.prose(4000) END);
  END IF;
  INSERT INTO orders (id, customer_id, coupons, ship_to, placed_at, deliver_at)
  VALUES (new_order, buyer, CASE WHEN random() < 0.3 THEN ARRAY[(random() * 100)::int] END, traffic.address(),
          clock_timestamp(), CASE WHEN random() < 0.5 THEN make_time(floor(random() * 24)::int, 30, random()) END);
  INSERT INTO order_lines (order_id, line_no, product_id, quantity, unit_price, discount)
  SELECT new_order, l, p.id, 1 + floor(random() * 5), p.price, CASE WHEN l = 2 THEN p.price / 3 END
  FROM generate_series(1, 1 + floor(random() * 5)::int) AS l, products AS p
  WHERE p.id = 1 + (chosen + l * 17) % 300;
  UPDATE orders SET total = (SELECT round(sum(quantity * unit_price - coalesce(discount, 0)), 2)
                             FROM order_lines WHERE order_id = new_order)
  WHERE id = new_order;
  -- Leaves the long description alone, which Postgres therefore does not send.
  UPDATE products SET stock = stock - 1, updated_at = clock_timestamp() WHERE id = chosen;
END $$;

CREATE PROCEDURE traffic.one_transaction(side integer) LANGUAGE plpgsql AS $$
DECLARE
  kind float := random();
BEGIN
  CASE
    WHEN kind < 0.35 THEN
      CALL traffic.place_order(side);
    WHEN kind < 0.60 THEN
      UPDATE orders SET status = (enum_range(NULL::order_status))[1 + floor(random() * 5)::int]
      WHERE id = (SELECT traffic.any_order(side));
    WHEN kind < 0.75 THEN
      UPDATE customers SET credit = credit + round((random() * 10 - 5)::numeric, 2),
                           preferences = preferences || jsonb_build_object('seen', extract(epoch FROM now())::bigint)
      WHERE id = (SELECT traffic.any_customer(side));
    WHEN kind < 0.80 THEN
      UPDATE products SET price = round((1 + random() * 300)::numeric, 2), tags = tags || ARRAY['repriced']
      WHERE id = 1 + floor(random() * 300) AND cardinality(tags) < 6;
    WHEN kind < 0.82 THEN
      UPDATE products SET description = traffic.prose(6000) WHERE id = 1 + floor(random() * 300);
    WHEN kind < 0.86 THEN
      -- A key change with a long text that stays as it is; the customer's orders follow by the foreign key.
      UPDATE customers SET id = nextval('traffic.customer_id') * 2 + side WHERE id = (SELECT traffic.any_customer(side));
    WHEN kind < 0.92 THEN
      -- A key change in the middle of a composite key.
      UPDATE order_lines SET line_no = line_no + 100 WHERE order_id = (SELECT traffic.any_order(side)) AND line_no = 2;
    WHEN kind < 0.98 THEN
      DELETE FROM orders WHERE id = (SELECT traffic.any_order(side));
    ELSE
      -- Changed, and changed back.
      INSERT INTO customers (id, name, email)
      VALUES (side - 2, 'In and out', 'in-and-out-' || side || '@example.com');
      DELETE FROM customers WHERE id = side - 2;
  END CASE;
END $$;

CREATE PROCEDURE traffic.run(side integer) LANGUAGE plpgsql AS $$
DECLARE
  done integer := 0;
BEGIN
  LOOP
    EXIT WHEN (SELECT is_called FROM traffic.stop);
    CALL traffic.one_transaction(side);
    done := done + 1;
    IF done % 53 = 0 THEN
      ROLLBACK;
    ELSE
      COMMIT;
    END IF;
    -- Pauses keep the rate at a few hundred a second, whatever the machine.
    IF done % 20 = 0 THEN
      PERFORM pg_sleep(0.08);
    END IF;
  END LOOP;
END $$;
