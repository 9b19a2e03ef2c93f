// The part of Android's org.json that the written project uses, for arrays of strings alone.
package org.json;

import java.util.ArrayList;
import java.util.List;
import java.util.regex.Matcher;
import java.util.regex.Pattern;

public class JSONArray {
  private static final String STRING = "\"((?:[^\"\\\\]|\\\\.)*)\"";

  private final List<String> values = new ArrayList<>();

  public JSONArray(String json) throws JSONException {
    if (!json.matches("\\[\\s*(" + STRING + "\\s*(,\\s*" + STRING + "\\s*)*)?\\]")) {
      throw new JSONException("not an array of strings: " + json);
    }
    Matcher matcher = Pattern.compile(STRING).matcher(json);
    while (matcher.find()) {
      values.add(matcher.group(1).replaceAll("\\\\(.)", "$1"));
    }
  }

  public String getString(int index) throws JSONException {
    if (index < 0 || index >= values.size()) {
      throw new JSONException("no entry " + index);
    }
    return values.get(index);
  }
}
