// What Apache ORC's own reader finds in a file, with and without its search arguments: whatever they let it skip, by
// statistics of file, stripes and row groups or by bloom filters, no row that a predicate holds for may be among it.
//
//     java -cp orc-tools.jar Predicates.java FILE SEED ROUNDS       JSON: rows, tried, skipped (rows), wrong (predicates)

import java.nio.charset.StandardCharsets;
import java.sql.Timestamp;
import java.time.LocalDate;
import java.util.ArrayList;
import java.util.List;
import java.util.Random;
import java.util.TimeZone;
import org.apache.hadoop.conf.Configuration;
import org.apache.hadoop.fs.Path;
import org.apache.orc.OrcFile;
import org.apache.orc.Reader;
import org.apache.orc.RecordReader;
import org.apache.orc.TypeDescription;
import org.apache.orc.storage.ql.exec.vector.*;
import org.apache.orc.storage.ql.io.sarg.PredicateLeaf;
import org.apache.orc.storage.ql.io.sarg.SearchArgument;
import org.apache.orc.storage.ql.io.sarg.SearchArgumentFactory;
import org.apache.orc.storage.serde2.io.HiveDecimalWritable;

public class Predicates {
  enum Op { EQUALS, LESS, AT_MOST, BETWEEN, IS_NULL, IN, MORE }

  static Object value(ColumnVector column, int row, TypeDescription type) {
    int at = column.isRepeating ? 0 : row;
    if (!column.noNulls && column.isNull[at]) return null;
    switch (type.getCategory()) {
      case BOOLEAN: return ((LongColumnVector) column).vector[at] != 0;
      case SHORT: case INT: case LONG: return ((LongColumnVector) column).vector[at];
      case DATE: return java.sql.Date.valueOf(LocalDate.ofEpochDay(((LongColumnVector) column).vector[at]));
      case FLOAT: case DOUBLE: return ((DoubleColumnVector) column).vector[at];
      case STRING: {
        BytesColumnVector texts = (BytesColumnVector) column;
        return new String(texts.vector[at], texts.start[at], texts.length[at], StandardCharsets.UTF_8);
      }
      case DECIMAL: {
        if (!(column instanceof Decimal64ColumnVector)) {
          return new HiveDecimalWritable(((DecimalColumnVector) column).vector[at]);
        }
        HiveDecimalWritable decimal = new HiveDecimalWritable();
        decimal.setFromLongAndScale(((Decimal64ColumnVector) column).vector[at], ((Decimal64ColumnVector) column).scale);
        return decimal;
      }
      case TIMESTAMP: case TIMESTAMP_INSTANT: {
        Timestamp timestamp = new Timestamp(((TimestampColumnVector) column).time[at]);
        timestamp.setNanos(((TimestampColumnVector) column).nanos[at]);
        return timestamp;
      }
      default: throw new IllegalArgumentException(type.toString());
    }
  }

  /** Null for what no predicate is about. */
  static PredicateLeaf.Type kind(TypeDescription type) {
    switch (type.getCategory()) {
      case BOOLEAN: return PredicateLeaf.Type.BOOLEAN;
      case SHORT: case INT: case LONG: return PredicateLeaf.Type.LONG;
      case DATE: return PredicateLeaf.Type.DATE;
      case FLOAT: case DOUBLE: return PredicateLeaf.Type.FLOAT;
      case STRING: return PredicateLeaf.Type.STRING;
      case DECIMAL: return PredicateLeaf.Type.DECIMAL;
      case TIMESTAMP: case TIMESTAMP_INSTANT: return PredicateLeaf.Type.TIMESTAMP;
      default: return null;
    }
  }

  static boolean isNan(Object value) {
    return value instanceof Double && ((Double) value).isNaN();
  }

  @SuppressWarnings({"unchecked", "rawtypes"})
  static int compare(Object one, Object other) {
    if (one instanceof Double) {
      double a = (Double) one, b = (Double) other;
      return a < b ? -1 : a > b ? 1 : 0;
    }
    return ((Comparable) one).compareTo(other);
  }

  static boolean holds(Object value, Op op, Object low, Object high) {
    if (op == Op.IS_NULL) return value == null;
    if (value == null || isNan(value)) return false;
    int order = compare(value, low);
    switch (op) {
      case EQUALS: return order == 0;
      case LESS: return order < 0;
      case AT_MOST: return order <= 0;
      case BETWEEN: return order >= 0 && compare(value, high) <= 0;
      case IN: return order == 0 || compare(value, high) == 0;
      default: return order > 0;
    }
  }

  static SearchArgument argument(String name, PredicateLeaf.Type kind, Op op, Object low, Object high) {
    SearchArgument.Builder built = SearchArgumentFactory.newBuilder().startAnd();
    switch (op) {
      case EQUALS: built.equals(name, kind, low); break;
      case LESS: built.lessThan(name, kind, low); break;
      case AT_MOST: built.lessThanEquals(name, kind, low); break;
      case BETWEEN: built.between(name, kind, low, high); break;
      case IS_NULL: built.isNull(name, kind); break;
      case IN: built.in(name, kind, low, high); break;
      default: built.startNot().lessThanEquals(name, kind, low).end();
    }
    return built.end().build();
  }

  public static void main(String[] arguments) throws Exception {
    TimeZone.setDefault(TimeZone.getTimeZone("UTC"));
    Random random = new Random(Long.parseLong(arguments[1]));
    Reader reader = OrcFile.createReader(new Path(arguments[0]),
        OrcFile.readerOptions(new Configuration()).useUTCTimestamp(true));
    TypeDescription schema = reader.getSchema();
    VectorizedRowBatch batch = schema.createRowBatch();
    List<TypeDescription> types = schema.getChildren();
    List<List<Object>> columns = new ArrayList<>();
    for (TypeDescription type : types) columns.add(new ArrayList<>());
    RecordReader rows = reader.rows();
    while (rows.nextBatch(batch)) {
      for (int c = 0; c < types.size(); c++) {
        if (kind(types.get(c)) == null) continue;
        for (int r = 0; r < batch.size; r++) columns.get(c).add(value(batch.cols[c], r, types.get(c)));
      }
    }
    int tried = 0;
    long skipped = 0;
    List<String> wrong = new ArrayList<>();
    for (int round = 0; round < Integer.parseInt(arguments[2]); round++) {
      int c = random.nextInt(types.size());
      PredicateLeaf.Type kind = kind(types.get(c));
      List<Object> column = columns.get(c);
      if (kind == null || column.isEmpty()) continue;
      String name = schema.getFieldNames().get(c);
      Op op = Op.values()[random.nextInt(Op.values().length)];
      Object low = column.get(random.nextInt(column.size())), high = column.get(random.nextInt(column.size()));
      if (op != Op.IS_NULL && (low == null || high == null || isNan(low) || isNan(high))) continue;
      if (op == Op.BETWEEN && compare(low, high) > 0) {
        Object other = low;
        low = high;
        high = other;
      }
      long expected = 0, found = 0, read = 0;
      for (Object value : column) if (holds(value, op, low, high)) expected++;
      Reader.Options options = reader.options()
          .searchArgument(argument(name, kind, op, low, high), new String[] {name}).allowSARGToFilter(false);
      RecordReader some = reader.rows(options);
      while (some.nextBatch(batch)) {
        read += batch.size;
        for (int r = 0; r < batch.size; r++) {
          if (holds(value(batch.cols[c], r, types.get(c)), op, low, high)) found++;
        }
      }
      tried++;
      skipped += column.size() - read;
      if (expected != found) {
        wrong.add("\"" + (name + " " + op + " " + low + " " + high + ": " + found + " instead of " + expected)
            .replaceAll("[^ -~]|[\"\\\\]", "?") + "\"");
      }
    }
    System.out.println("{\"rows\":" + reader.getNumberOfRows() + ",\"tried\":" + tried + ",\"skipped\":" + skipped
        + ",\"wrong\":[" + String.join(",", wrong) + "]}");
  }
}
