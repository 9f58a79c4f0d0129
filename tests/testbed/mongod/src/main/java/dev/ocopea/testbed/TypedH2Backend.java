package dev.ocopea.testbed;

import de.bwaldvogel.mongo.MongoCollection;
import de.bwaldvogel.mongo.MongoDatabase;
import de.bwaldvogel.mongo.backend.CollectionOptions;
import de.bwaldvogel.mongo.backend.Index;
import de.bwaldvogel.mongo.backend.IndexKey;
import de.bwaldvogel.mongo.backend.KeyValue;
import de.bwaldvogel.mongo.backend.Missing;
import de.bwaldvogel.mongo.backend.h2.H2Backend;
import de.bwaldvogel.mongo.backend.h2.H2Database;
import de.bwaldvogel.mongo.bson.Document;
import de.bwaldvogel.mongo.bson.ObjectId;
import de.bwaldvogel.mongo.wire.bson.BsonDecoder;
import de.bwaldvogel.mongo.wire.bson.BsonEncoder;
import io.netty.buffer.ByteBuf;
import io.netty.buffer.Unpooled;
import java.nio.ByteBuffer;
import java.util.ArrayList;
import java.util.List;
import org.h2.mvstore.MVMap;
import org.h2.mvstore.WriteBuffer;
import org.h2.mvstore.type.BasicDataType;

/**
 * The library's file backend with BSON as its stored form. Its own form is Java's serialization, of keys even at every
 * comparison: five times slower to load and ten times to scan.
 */
final class TypedH2Backend extends H2Backend {
  TypedH2Backend(String file) {
    super(file);
    // What was superseded is overwritten after 45 s otherwise, under a cursor that still reads it: "Chunk not found".
    getMvStore().setRetentionTime(300_000);
  }

  @Override
  protected MongoDatabase openOrCreateDatabase(String name) {
    return new Database(name);
  }

  /**
   * Opens each map with its types before the library does: an open map keeps the types that it has. (The super
   * constructor calls these methods, so they use nothing but the backend around them.)
   */
  private final class Database extends H2Database {
    Database(String name) {
      super(name, getMvStore(), getCursorRegistry());
    }

    @Override
    protected MongoCollection<Object> openOrCreateCollection(String collection, CollectionOptions options) {
      getMvStore().openMap(
          "databases." + getDatabaseName() + "." + collection,
          new MVMap.Builder<Object, Document>().keyType(new ValueType()).valueType(new DocumentType()));
      return super.openOrCreateCollection(collection, options);
    }

    @Override
    protected Index<Object> openOrCreateUniqueIndex(String collection, String index, List<IndexKey> keys, boolean sparse) {
      getMvStore().openMap(
          getDatabaseName() + "." + collection + "._index_" + index,
          new MVMap.Builder<KeyValue, Object>().keyType(new KeyValueType()).valueType(new ValueType()));
      return super.openOrCreateUniqueIndex(collection, index, keys, sparse);
    }
  }

  private static void encode(Object value, ByteBuf into) {
    if (value == null) {
      into.writeByte(0x0a);
    } else if (value instanceof Missing) {
      into.writeByte(0);
    } else {
      byte type = BsonEncoder.determineType(value);
      into.writeByte(type);
      BsonEncoder.encodeValue(type, value, into);
    }
  }

  private static Object decode(ByteBuf from) {
    byte type = from.readByte();
    return switch (type) {
      case 0 -> Missing.getInstance();
      case 0x0a -> null;
      default -> BsonDecoder.decodeValue(type, from);
    };
  }

  /** An order, if not MongoDB's: by type, then by value where that is cheap, else by the encoded bytes. */
  private static int compareValues(Object left, Object right) {
    if (left instanceof ObjectId a && right instanceof ObjectId b) {
      return a.compareTo(b);
    }
    if (left instanceof Long a && right instanceof Long b) {
      return a.compareTo(b);
    }
    if (left instanceof Double a && right instanceof Double b) {
      return a.compareTo(b);
    }
    if (left instanceof String a && right instanceof String b) {
      return a.compareTo(b);
    }
    ByteBuf a = Unpooled.buffer(64);
    ByteBuf b = Unpooled.buffer(64);
    encode(left, a);
    encode(right, b);
    return a.compareTo(b);
  }

  /** Values as length and bytes. */
  private abstract static class Encoded<T> extends BasicDataType<T> {
    abstract void put(T value, ByteBuf into);

    abstract T take(ByteBuf from);

    @Override
    public int compare(T left, T right) {
      throw new UnsupportedOperationException("documents are no keys");
    }

    @Override
    public int getMemory(T value) {
      return 100;
    }

    @Override
    public void write(WriteBuffer into, T value) {
      ByteBuf buffer = Unpooled.buffer(256);
      put(value, buffer);
      into.putVarInt(buffer.readableBytes()).put(buffer.nioBuffer());
    }

    @Override
    public T read(ByteBuffer from) {
      byte[] bytes = new byte[org.h2.mvstore.DataUtils.readVarInt(from)];
      from.get(bytes);
      return take(Unpooled.wrappedBuffer(bytes));
    }
  }

  /** An id, or a place in a collection, which is an id. */
  private static final class ValueType extends Encoded<Object> {
    @Override
    void put(Object value, ByteBuf into) {
      encode(value, into);
    }

    @Override
    Object take(ByteBuf from) {
      return decode(from);
    }

    @Override
    public int compare(Object left, Object right) {
      return compareValues(left, right);
    }

    @Override
    public Object[] createStorage(int size) {
      return new Object[size];
    }
  }

  private static final class KeyValueType extends Encoded<KeyValue> {
    @Override
    void put(KeyValue key, ByteBuf into) {
      into.writeByte(key.size());
      for (Object value : key) {
        encode(value, into);
      }
    }

    @Override
    KeyValue take(ByteBuf from) {
      int size = from.readByte();
      List<Object> values = new ArrayList<>(size);
      for (int i = 0; i < size; i++) {
        values.add(decode(from));
      }
      return new KeyValue(values);
    }

    @Override
    public int compare(KeyValue left, KeyValue right) {
      for (int i = 0; i < Math.min(left.size(), right.size()); i++) {
        int order = compareValues(left.get(i), right.get(i));
        if (order != 0) {
          return order;
        }
      }
      return Integer.compare(left.size(), right.size());
    }

    @Override
    public KeyValue[] createStorage(int size) {
      return new KeyValue[size];
    }
  }

  private static final class DocumentType extends Encoded<Document> {
    @Override
    void put(Document document, ByteBuf into) {
      BsonEncoder.encodeDocument(document, into);
    }

    @Override
    Document take(ByteBuf from) {
      return BsonDecoder.decodeBson(from);
    }

    @Override
    public int getMemory(Document document) {
      return 1_000;
    }

    @Override
    public Document[] createStorage(int size) {
      return new Document[size];
    }
  }
}
