// What Spark sees in the folders of a day: for each column its values as texts which all readers print alike (see
// read.py), or the error that it ends with.
//
//     java -cp '.spark/libs/*' Spark.java REQUESTS     a file of JSON: [{"format", "folder", "columns": [[name, kind], …]}]
//     stdout: a line of JSON for each; with "filters": [SQL, …], the ids that each finds instead

import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import java.io.File;
import java.math.BigDecimal;
import java.math.BigInteger;
import java.nio.charset.StandardCharsets;
import java.time.Instant;
import java.time.LocalDate;
import java.time.LocalDateTime;
import java.time.LocalTime;
import java.time.ZoneOffset;
import java.util.*;
import org.apache.spark.sql.*;
import scala.jdk.javaapi.CollectionConverters;

public class Spark {
  static final ObjectMapper JSON = new ObjectMapper();

  static String micros(Instant at) {
    return BigInteger.valueOf(at.getEpochSecond()).multiply(BigInteger.valueOf(1_000_000))
        .add(BigInteger.valueOf(at.getNano() / 1000)).toString();
  }

  static String timeOfDay(String text) {
    String[] parts = text.split("[:.]");
    long seconds = (Long.parseLong(parts[0]) * 60 + Long.parseLong(parts[1])) * 60 + Long.parseLong(parts[2]);
    return String.valueOf(seconds * 1_000_000 + Long.parseLong(parts[3]));
  }

  static Object text(Object value, String kind, boolean csv) {
    if (value == null) return null;
    if (csv) return value.toString();
    String[] split = kind.split(" ", 2);
    switch (split[0]) {
      case "list": {
        List<Object> items = new ArrayList<>();
        for (Object item : CollectionConverters.asJava((scala.collection.Seq<?>) value)) items.add(text(item, split[1], false));
        return items;
      }
      case "real": {
        float number = (Float) value;
        return Float.isNaN(number) ? "nan" : String.format("%08x", Float.floatToRawIntBits(number));
      }
      case "double": {
        double number = (Double) value;
        return Double.isNaN(number) ? "nan" : String.format("%016x", Double.doubleToRawLongBits(number));
      }
      case "decimal": return value instanceof BigDecimal ? ((BigDecimal) value).toPlainString() : value.toString();
      case "bytes": return HexFormat.of().formatHex((byte[]) value);
      case "date": return String.valueOf(((LocalDate) value).toEpochDay());
      case "time":
        if (value instanceof LocalTime) return String.valueOf(((LocalTime) value).toNanoOfDay() / 1000);
        return value instanceof String ? timeOfDay((String) value) : value.toString();
      case "local": case "instant":
        return micros(value instanceof Instant ? (Instant) value : ((LocalDateTime) value).toInstant(ZoneOffset.UTC));
      default: return value.toString();
    }
  }

  static String quoted(String name) {
    return "`" + name.replace("`", "``") + "`";
  }

  /** The message at the root of it. */
  static String told(Throwable error) {
    while (error.getCause() != null) error = error.getCause();
    String text = (error.getClass().getSimpleName() + ": " + error.getMessage()).replaceAll("\\s+", " ");
    return text.length() > 300 ? text.substring(0, 300) : text;
  }

  static void each(Dataset<Row> table, List<String[]> columns, boolean csv, Map<String, Object> out) {
    if (columns.isEmpty()) return;
    try {
      Column[] selected = columns.stream().map(c -> table.col(quoted(c[0]))).toArray(Column[]::new);
      Dataset<Row> ordered = table.orderBy(table.col("id").cast("int")).select(selected);
      Map<String, Object> found = new LinkedHashMap<>();
      for (String[] column : columns) found.put(column[0], new ArrayList<Object>());
      for (Row row : ordered.collectAsList()) {
        for (int i = 0; i < columns.size(); i++) {
          @SuppressWarnings("unchecked")
          List<Object> values = (List<Object>) found.get(columns.get(i)[0]);
          values.add(text(row.get(i), columns.get(i)[1], csv));
        }
      }
      out.putAll(found);
    } catch (Throwable error) {
      if (columns.size() == 1) {
        out.put(columns.get(0)[0], Map.of("error", told(error)));
        return;
      }
      int middle = columns.size() / 2;
      each(table, columns.subList(0, middle), csv, out);
      each(table, columns.subList(middle, columns.size()), csv, out);
    }
  }

  /** A column's type in a table's definition; nothing for what Spark finds out by itself. */
  static String declared(String kind, String format) {
    String[] split = kind.split(" ", 2);
    switch (split[0]) {
      case "list": return "array<" + declared(split[1], format) + ">";
      case "bool": return "boolean";
      case "int": return split[1].equals("2") ? "smallint" : split[1].equals("4") ? "int" : "bigint";
      case "real": return "float";
      case "decimal": return "decimal(" + split[1].replace(' ', ',') + ")";
      case "bytes": return "binary";
      case "time": return format.equals("orc") ? "string" : "bigint";
      // Of a timestamp in ORC, which has no time zone either, it would take the seconds for microseconds.
      case "local": return format.equals("orc") ? "timestamp" : "timestamp_ntz";
      case "instant": return "timestamp";
      case "text": return "string";
      default: return split[0];
    }
  }

  static Dataset<Row> open(SparkSession spark, JsonNode request, String format, String folder) {
    DataFrameReader reader = spark.read();
    if (request.has("declared")) {
      List<String> fields = new ArrayList<>();
      for (JsonNode column : request.get("columns")) {
        fields.add(quoted(column.get(0).asText()) + " " + declared(column.get(1).asText(), format));
      }
      reader = reader.schema(String.join(", ", fields));
    }
    if (format.equals("csv")) {
      // Its own default for nulls takes "" for one, too.
      return reader.option("header", true).option("nullValue", "\u0000").option("multiLine", true).option("escape", "\"").option("maxCharsPerColumn", -1)
          .option("maxColumns", 10000).option("encoding", StandardCharsets.UTF_8.name()).csv(folder);
    }
    return reader.format(format).load(folder);
  }

  public static void main(String[] arguments) throws Exception {
    TimeZone.setDefault(TimeZone.getTimeZone("UTC"));
    SparkSession.Builder builder = SparkSession.builder().master("local[1]").appName("readers")
        .config("spark.ui.enabled", false)
        .config("spark.sql.shuffle.partitions", 1)
        .config("spark.sql.codegen.wholeStage", false)
        .config("spark.sql.session.timeZone", "UTC")
        // The default of Spark 4; that of 3 refuses what is before 1582 in files that it did not write.
        .config("spark.sql.parquet.datetimeRebaseModeInRead", "CORRECTED")
        .config("spark.sql.datetime.java8API.enabled", true)
        .config("spark.driver.bindAddress", "127.0.0.1")
        .config("spark.driver.host", "127.0.0.1");
    SparkSession spark = builder.getOrCreate();
    for (JsonNode request : JSON.readTree(new File(arguments[0]))) {
      String format = request.get("format").asText();
      if (request.has("settings")) {
        request.get("settings").fields().forEachRemaining(s -> spark.conf().set(s.getKey(), s.getValue().asText()));
      }
      Map<String, Object> out = new LinkedHashMap<>();
      try {
        Dataset<Row> table = open(spark, request, format, request.get("folder").asText());
        if (request.has("filters")) {
          for (JsonNode filter : request.get("filters")) {
            List<Object> ids = new ArrayList<>();
            for (Row row : table.where(filter.asText()).select("id").orderBy("id").collectAsList()) ids.add(row.get(0));
            out.put(filter.asText(), ids);
          }
        } else {
          List<String[]> columns = new ArrayList<>();
          for (JsonNode column : request.get("columns")) {
            columns.add(new String[] {column.get(0).asText(), column.get(1).asText()});
          }
          each(table, columns, format.equals("csv"), out);
        }
      } catch (Throwable error) {
        out.clear();
        out.put("error", told(error));
      }
      System.out.println(JSON.writeValueAsString(out));
    }
    spark.stop();
  }
}
